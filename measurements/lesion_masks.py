"""Put a ball of one intensity into the moving scan of real pairs, and register with and without a mask of the ball.

    python -m measurements.lesion_masks --data DIR --pairs pair,s3-s4,s11-s12

The ball lies in the left hemisphere (FreeSurfer's labels 1 to 39 and 1000 to 1999), around the labelled voxel nearest
to the hemisphere's centre of mass. Dice is the mean over all labels with 50 voxels or more in both maps, those under
the ball too; the largest displacement is that beyond the affine. The effect of the ball is the distance in mm from the
same pair's transform without a ball: under the ball, within 10 mm of it, and farther away, means over the fixed
foreground. `--data` as in real_pairs_list.py.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from scipy.ndimage import distance_transform_edt

import runtime
from measurements.real_pairs_list import files
from runtime.geometry.transform import AffineTransform
from runtime.images.overlap import common_labels, mean_dice
from runtime.images.resampling.resample import resample_through
from runtime.images.volume import Volume, read_labels, read_volume

NEAR_MM = 10.0
COLUMNS = ("pair", "moving scan", "mask", "Dice", "largest mm", "under mm", "near mm", "far mm", "seconds")


def ball(labels: Volume, radius: float) -> np.ndarray:
    """Return the ball as a mask (I, J, K) bool on the grid of the labels."""
    numbers = labels.data
    inside = np.argwhere(((numbers > 0) & (numbers < 40)) | ((numbers >= 1000) & (numbers < 2000)))
    centre = inside[np.argmin(np.sum((inside - inside.mean(axis=0)) ** 2, axis=1))]
    axes = np.ogrid[tuple(map(slice, labels.data.shape))]
    steps = zip(axes, centre, labels.grid.spacing, strict=True)
    return sum(((axis - c) * spacing) ** 2 for axis, c, spacing in steps) <= radius**2


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(vectors, dtype=np.float64), axis=-1))


class Pair:
    """One pair, the ball in its moving scan, and its transform without the ball."""

    def __init__(self, name: str, engines, paths, radius: float) -> None:
        fixed, moving, fixed_labels, moving_labels = paths
        self.name, self.moving = name, read_volume(moving, "moving")
        self.labels, self._target = (read_labels(path, "labels") for path in (moving_labels, fixed_labels))
        self._scores = common_labels(self._target.data, self.labels.data)
        fixed = read_volume(fixed, "fixed")
        self._foreground = fixed.data > 0
        self._onto = runtime.FixedScan(fixed, engines)
        self.ball = ball(self.labels, radius)
        self._sound = self._onto.register(self.moving, self.labels)
        under = resample_through(self.ball.astype(np.float32), self.moving.grid, self._sound.displacement, fixed.grid)
        self._distance = distance_transform_edt(under <= 0.5, sampling=fixed.grid.spacing)

    def row(self, what: str, intensity: float | None, masked: bool) -> list:
        """Register with the ball at an intensity (None: without a ball) and return a row of the table."""
        scan, mask = self.moving, None
        if intensity is not None:
            scan = replace(scan, data=np.where(self.ball, np.float32(intensity), scan.data))
        if masked:
            mask = Volume(data=(~self.ball).astype(np.uint8), grid=scan.grid)
        found = self._onto.register(scan, self.labels, mask=mask)
        beyond = found.displacement - AffineTransform(found.transform.affine).displacement(found.fixed.grid)
        moved = lengths(found.displacement - self._sound.displacement)
        near, far = self._distance <= NEAR_MM, self._distance > NEAR_MM
        zones = (self._distance == 0, near & (self._distance > 0), far)
        return [
            *(self.name, what, "yes" if masked else "no"),
            f"{mean_dice(self._target.data, found.warped_labels, self._scores):.4f}",
            f"{lengths(beyond).max():.1f}",
            *(f"{moved[zone & self._foreground].mean():.2f}" for zone in zones),
            f"{sum(found.seconds.values()):.0f}",
        ]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", default="engines", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", default="pair,s3-s4,s11-s12", show_default=True)
@click.option("--radius", default=12.0, show_default=True, help="Radius of the ball, mm.")
@click.option("--threads", type=int)
def main(engine_dir: str, data: Path, pairs: str, radius: float, threads: int | None) -> None:
    click.echo("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    with runtime.open_engines(engine_dir, threads=threads) as engines:
        for name in pairs.split(","):
            pair = Pair(name, engines, files(data, name), radius)
            bright = float(pair.moving.data.max())
            cases = [("as it is", None, False)]
            balls = ("ball of 0", 0.0), ("ball as bright as the brightest voxel", bright)
            cases += [(*what, masked) for what in balls for masked in (False, True)]
            for case in cases:
                click.echo("| " + " | ".join(pair.row(*case)) + " |")


if __name__ == "__main__":
    main()
