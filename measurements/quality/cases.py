"""Maker of cases: what can be wrong with two scans, each case a change of the moving or the fixed scan of a sound pair.

A case never changes which voxel is which structure: labels share the changed scan's grid. So the Dice of a case can be
compared with that of the sound pair, and a case in which nothing can be aligned counts as 0.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, uniform_filter1d, zoom

from measurements.validation import degradations
from runtime.geometry.grid import Grid, bounding_box
from runtime.images.volume import Volume
from runtime.registration.affine.rotations import orientations, rotation

Array = np.ndarray
Chance = np.random.Generator
TOP = 99.9  # percentile that counts as 1


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan with labels."""

    name: str
    image: Volume
    labels: Volume


@dataclass(frozen=True, eq=False)
class Changed:
    """A scan after a change.

    Attributes:
        image, labels: on one grid.
        box: the voxels that are left of the sound scan.
        mask: mask given with the scan, or None.
        hopeless: True if no voxel of the image shows the subject any more.
    """

    image: Volume
    labels: Volume
    box: tuple[slice, ...] = (slice(None),) * 3
    mask: Volume | None = None
    hopeless: bool = False


Change = Callable[[Subject, Chance], Changed]


@dataclass(frozen=True)
class Entry:
    """An entry of the list of cases.

    Attributes:
        kind: name of the row in tables.
        level: the strength of the change, in words.
        change: what is done to the scan.
        side: "moving" or "fixed".
        options: options of the registration other than the defaults.
    """

    kind: str
    level: str
    change: Change
    side: str = "moving"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.level}" + (".fixed" if self.side == "fixed" else "")

    def applied(self, subject: Subject, pair: str) -> Changed:
        """Return the changed scan; what is drawn depends on the names of the entry and the pair alone."""
        return self.change(subject, np.random.default_rng(zlib.crc32(f"{self.name} {pair}".encode())))


def _with_data(subject: Subject, data: Array) -> Changed:
    return Changed(replace(subject.image, data=np.ascontiguousarray(data, np.float32)), subject.labels)


def intensities(function: Callable[[Array, Array, Chance], Array]) -> Change:
    """Return a change of intensities: `function` gets the image scaled to [0, 1], its brain and the generator."""

    def change(subject: Subject, chance: Chance) -> Changed:
        data = subject.image.data
        top = np.percentile(data[data > 0], TOP)
        return _with_data(subject, top * function(data / top, data > 0, chance))

    return change


def header(matrix: Callable[[Chance], Array]) -> Change:
    """Return a change of the header: a map (4, 4) of scanner space, about the scan's centre, applied to its affine."""

    def change(subject: Subject, chance: Chance) -> Changed:
        grid = subject.image.grid
        centre, moved = grid.corners.mean(axis=0), matrix(chance)
        about, back = np.eye(4), np.eye(4)
        about[:3, 3], back[:3, 3] = -centre, centre
        return on_grid(subject, Grid(grid.shape, back @ moved @ about @ grid.affine))

    return change


def on_grid(subject: Subject, grid: Grid) -> Changed:
    image, labels = (replace(volume, grid=grid) for volume in (subject.image, subject.labels))
    return Changed(image, labels)


def turned(matrix: Array) -> Array:
    result = np.eye(4)
    result[:3, :3] = matrix
    return result


def shifted(distance: float) -> Callable[[Chance], Array]:
    def matrix(chance: Chance) -> Array:
        result, direction = np.eye(4), chance.standard_normal(3)
        result[:3, 3] = distance * direction / np.linalg.norm(direction)
        return result

    return matrix


def tilted(angle: float) -> Callable[[Chance], Array]:
    """Return a rotation by an angle in degrees about a random axis of the three."""
    return lambda chance: turned(rotation(tuple(angle * np.eye(3)[chance.integers(3)])))


def permuted(chance: Chance) -> Array:
    """Return a rotation that exchanges axes: one of the 24 but for those that only turn about an axis by 180."""
    proper = [turn for turn in orientations() if np.abs(np.diag(turn)).sum() < 3]
    return turned(proper[chance.integers(len(proper))])


def flipped(axis: int) -> Callable[[Chance], Array]:
    def matrix(chance: Chance) -> Array:
        result = np.eye(4)
        result[axis, axis] = -1
        return result

    return matrix


def half_turn(axis: int) -> Callable[[Chance], Array]:
    return lambda chance: turned(rotation(tuple(180.0 * np.eye(3)[axis])))


def scaled(factor: float) -> Callable[[Chance], Array]:
    return lambda chance: np.diag([factor, factor, factor, 1.0])


def partial(direction: int, share: float, padded: bool = False) -> Change:
    """Return a change that leaves out a share of the brain's extent on one of six sides (R, L, A, P, S, I).

    Args:
        direction: index of the side.
        share: share of the extent.
        padded: True to set what is left out to 0, False to cut it off the grid.
    """

    def change(subject: Subject, chance: Chance) -> Changed:
        grid, data = subject.image.grid, subject.image.data
        physical, high = divmod(direction, 2)
        axis = int(np.argmax(np.abs(grid.directions[physical])))
        # Side 0 of each pair is the higher end in RAS.
        at_high = (grid.directions[physical, axis] > 0) != bool(high)
        used = np.flatnonzero(data.any(axis=tuple(a for a in range(3) if a != axis)))
        cut = round(share * len(used))
        kept = slice(0, used[-1] + 1 - cut) if at_high else slice(used[0] + cut, None)
        box = tuple(kept if a == axis else slice(None) for a in range(3))
        if padded:
            left = np.zeros_like(data)
            left[box] = data[box]
            return replace(_with_data(subject, left), box=box)
        start = np.array([piece.start or 0 for piece in box])
        part = grid.crop(start, data[box].shape)
        image = replace(subject.image, data=np.ascontiguousarray(data[box]), grid=part)
        labels = replace(subject.labels, data=np.ascontiguousarray(subject.labels.data[box]), grid=part)
        return Changed(image, labels, box)

    return change


def thick(voxels: int) -> Change:
    """Return a change that averages slices of so many voxels along the axis closest to S."""

    def change(subject: Subject, chance: Chance) -> Changed:
        grid = subject.image.grid
        axis = int(np.argmax(np.abs(grid.directions[2])))
        middle = voxels // 2
        every = tuple(slice(middle, None, voxels) if a == axis else slice(None) for a in range(3))
        image = uniform_filter1d(subject.image.data, voxels, axis=axis, mode="constant")[every]
        step = np.eye(4)
        step[axis, axis], step[axis, 3] = voxels, middle
        coarse = Grid(image.shape, grid.affine @ step)
        # The labels stay fine, so that only the image is worse.
        return Changed(replace(subject.image, data=np.ascontiguousarray(image), grid=coarse), subject.labels)

    return change


def shell(thickness: int, gap: int, bright: float) -> Change:
    """Return a change that puts a shell around the brain, like a skull or a scalp."""

    def function(image: Array, brain: Array, chance: Chance) -> Array:
        inner = binary_dilation(brain, iterations=gap) if gap else brain
        outer = binary_dilation(inner, iterations=thickness)
        texture = gaussian_filter(chance.standard_normal(image.shape), 4)
        texture = bright * (1 + 0.3 * texture / texture.std())
        return np.where(outer & ~inner, np.clip(texture, 0.05, 1), image)

    return intensities(function)


def lesion(radius: float, masked: bool = False) -> Change:
    """Return a change that puts a ball of 0 into the brain, with or without a mask of it."""

    def change(subject: Subject, chance: Chance) -> Changed:
        data, spacing = subject.image.data, subject.image.grid.spacing
        inside = np.argwhere(data > 0)
        middle = inside.mean(axis=0)
        near = inside[np.linalg.norm((inside - middle) * spacing, axis=1) < 45]
        centre = near[chance.integers(len(near))]
        axes = np.ogrid[tuple(map(slice, data.shape))]
        ball = sum(((a - c) * s) ** 2 for a, c, s in zip(axes, centre, spacing, strict=True)) <= radius**2
        changed = _with_data(subject, np.where(ball, 0, data))
        mask = Volume(data=(~ball).astype(np.uint8), grid=subject.image.grid) if masked else None
        return replace(changed, mask=mask)

    return change


def noise(strength: float) -> Change:
    return intensities(lambda image, brain, chance: degradations.noise(image, chance, strength))


def bias(strength: float) -> Change:
    return intensities(lambda image, brain, chance: degradations.bias(image, chance, strength))


def saturated(level: float) -> Change:
    return intensities(lambda image, brain, chance: np.minimum(image, np.quantile(image[brain], level)))


def smoothed(mm: float) -> Change:
    return intensities(lambda image, brain, chance: gaussian_filter(image, mm))


def ghost(strength: float) -> Change:
    """Return a change that adds copies of the image, shifted by a third and two thirds of its size along one axis."""

    def function(image: Array, brain: Array, chance: Chance) -> Array:
        axis = int(chance.integers(3))
        size = image.shape[axis] // 3
        return image + strength * (np.roll(image, size, axis) + np.roll(image, 2 * size, axis))

    return intensities(function)


def contrast(image: Array, brain: Array, chance: Chance) -> Array:
    """Bring grey and white matter together."""
    return degradations.contrast(image, chance)


def inverted(image: Array, brain: Array, chance: Chance) -> Array:
    """Invert the brain's intensities, as in a T2-weighted image; the background stays 0."""
    return np.where(brain, np.clip(1.1 - image, 0.05, None), 0)


def negative(image: Array, brain: Array, chance: Chance) -> Array:
    """Invert the whole image, background included."""
    return 1 - np.clip(image, 0, 1)


def z_scored(subject: Subject, chance: Chance) -> Changed:
    """Standardise the brain's intensities; the background stays 0."""
    data = subject.image.data
    brain = data > 0
    return _with_data(subject, np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0))


def z_scored_whole(subject: Subject, chance: Chance) -> Changed:
    data = subject.image.data
    return _with_data(subject, (data - data.mean()) / data.std())


def hopeless(function: Callable[[Array, Array, Chance], Array]) -> Change:
    change = intensities(function)
    return lambda subject, chance: replace(change(subject, chance), hopeless=True)


def _noise_alone(image: Array, brain: Array, chance: Chance) -> Array:
    return np.abs(chance.standard_normal(image.shape))


def _noise_in_brain(image: Array, brain: Array, chance: Chance) -> Array:
    return np.abs(chance.standard_normal(image.shape)) * brain


def _smooth_noise(image: Array, brain: Array, chance: Chance) -> Array:
    field = gaussian_filter(chance.standard_normal(image.shape), 6)
    return np.maximum(field / field.std(), 0)


def _ball(image: Array, brain: Array, chance: Chance) -> Array:
    axes = np.ogrid[tuple(map(slice, image.shape))]
    centre = np.argwhere(brain).mean(axis=0)
    return np.where(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= 60**2, 0.6, 0)


def _shuffled(image: Array, brain: Array, chance: Chance) -> Array:
    """Exchange the brain's blocks of 16 voxels: the right histogram, none of the anatomy."""
    size = 16
    blocks = [
        tuple(slice(n * size, (n + 1) * size) for n in index)
        for index in np.ndindex(*(edge // size for edge in image.shape))
    ]
    blocks = [block for block in blocks if brain[block].mean() > 0.5]
    result = image.copy()
    for target, source in zip(blocks, chance.permutation(len(blocks)), strict=True):
        result[target] = image[blocks[source]]
    return result


def other_part(volume: Volume) -> Change:
    """Return a change that replaces the scan by one of another body part."""

    def change(subject: Subject, chance: Chance) -> Changed:
        return Changed(replace(volume, path=None), subject.labels, hopeless=True)

    return change


def rescaled(factor: float) -> Change:
    """Return a change of the size with new voxels of the old size."""

    def change(subject: Subject, chance: Chance) -> Changed:
        first, last = bounding_box(subject.image.data > 0)
        start, stop = np.maximum(first - 5, 0), np.minimum(last + 6, subject.image.grid.shape)
        box = tuple(map(slice, start, stop))
        grid = subject.image.grid.crop(start, tuple(stop - start))
        image, labels = (
            zoom(volume.data[box], factor, order=n) for volume, n in ((subject.image, 1), (subject.labels, 0))
        )
        ratios = np.array(grid.shape) / image.shape
        step = np.diag([*ratios, 1.0])
        step[:3, 3] = (ratios - 1) / 2
        matrix = np.diag([factor] * 3 + [1.0]) @ grid.affine @ step
        new = Grid(image.shape, matrix)
        return Changed(replace(subject.image, data=image, grid=new), replace(subject.labels, data=labels, grid=new))

    return change


NO_AFFINE = (("affine", "none"),)
SIDES = ["right", "left", "front", "back", "top", "bottom"]


def entries(body: Volume | None = None) -> list[Entry]:
    """Return the list of cases but the sound one; `body`: a scan of another body part."""
    found = [Entry("turned 180", name, header(half_turn(axis))) for axis, name in enumerate("xyz")]
    found += [Entry("axes exchanged", str(n), header(permuted)) for n in range(4)]
    found += [Entry("mirrored", "left-right", header(flipped(0)))]
    found += [Entry("mirrored", name, header(flipped(n))) for n, name in ((1, "front-back"), (2, "top-bottom"))]
    found += [Entry("shifted", f"{mm} mm", header(shifted(mm))) for mm in (30, 100, 300)]
    found += [Entry("tilted", f"{angle}", header(tilted(angle))) for angle in (15, 30, 45, 90)]
    found += [Entry("no affine", f"{mm} mm", header(shifted(mm)), options=NO_AFFINE) for mm in (8, 20, 100)]
    found += [Entry("no affine", f"{angle} degrees", header(tilted(angle)), options=NO_AFFINE) for angle in (10, 30)]
    found += [Entry("no affine", "90 degrees", header(tilted(90)), options=NO_AFFINE)]
    found += [Entry("size", f"{factor}", rescaled(factor)) for factor in (0.45, 0.6, 0.75, 1.3, 1.6, 2.0)]
    mouse = header(scaled(0.1))
    found += [Entry("species", "a tenth", mouse), Entry("species", "a tenth both", mouse, side="both")]
    for side, name in enumerate(SIDES):
        found += [Entry("partial", f"{name} {share}%", partial(side, share / 100)) for share in (15, 40)]
    found += [Entry("partial", f"{name} 30%", partial(n, 0.3), "fixed") for n, name in enumerate(SIDES)]
    found += [Entry("partial padded", f"{name} 30%", partial(n, 0.3, True)) for n, name in ((1, "left"), (4, "top"))]
    found += [Entry("partial padded", "bottom 30%", partial(5, 0.3, True), "fixed")]
    found += [Entry("shell", "thin", shell(3, 3, 0.5)), Entry("shell", "thick", shell(8, 2, 0.8))]
    found += [Entry("shell", "touching", shell(5, 0, 0.7)), Entry("shell", "thick", shell(8, 2, 0.8), "fixed")]
    found += [Entry("lesion", f"{mm} mm", lesion(mm)) for mm in (12, 25)]
    found += [Entry("lesion masked", f"{mm} mm", lesion(mm, True)) for mm in (12, 25)]
    found += [Entry("noise", f"{level}", noise(level)) for level in (0.03, 0.1, 0.3)]
    found += [Entry("noise", "0.2", noise(0.2), "fixed")]
    found += [Entry("bias", f"{level}", bias(level)) for level in (0.3, 0.7, 1.5)]
    found += [Entry("saturated", f"{level}", saturated(level)) for level in (0.7, 0.3)]
    found += [Entry("smoothed", f"{mm} mm", smoothed(mm)) for mm in (1, 2.5, 5)]
    found += [Entry("ghosts", f"{level}", ghost(level)) for level in (0.15, 0.5)]
    found += [Entry("contrast", "less", intensities(contrast)), Entry("contrast", "inverted", intensities(inverted))]
    found += [Entry("contrast", "negative", intensities(negative))]
    found += [Entry("z-scored", "brain", z_scored), Entry("z-scored", "whole", z_scored_whole)]
    found += [Entry("thick slices", f"{mm} mm", thick(mm)) for mm in (3, 6)]
    found += [Entry("not a head", "noise", hopeless(_noise_alone))]
    found += [Entry("not a head", "noise in a brain's shape", hopeless(_noise_in_brain))]
    found += [
        Entry("not a head", "smooth noise", hopeless(_smooth_noise)),
        Entry("not a head", "ball", hopeless(_ball)),
    ]
    found += [Entry("not a head", "shuffled blocks", hopeless(_shuffled))]
    if body is not None:
        window = (("window", (-200.0, 300.0)),)
        found += [Entry("not a head", "body CT", other_part(body))]
        found += [Entry("not a head", "body CT windowed", other_part(body), options=window)]
    return found
