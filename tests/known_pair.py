"""For tests of `apply` and its like: a scan and a reference with a known map between them, as files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from runtime.commands.terminal import OneLineGroup
from runtime.commands.transforms import apply, compose, convert, invert, jacobian
from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, Transform, from_displacement
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import read_source
from runtime.transforms import Space, write_transform
from tests import scans

COMMANDS = OneLineGroup("cli.py", commands=[apply, compose, invert, jacobian, convert])
SHIFT = np.array([6.0, -4.0, 3.0])  # mm, RAS
TURN = np.array([[0.96, -0.28, 0.02, 4.0], [0.28, 0.97, -0.05, -3.0], [0.01, 0.04, 1.04, 2.0], [0, 0, 0, 1.0]])


def run(command: str, *arguments) -> Result:
    """A command line, in this process."""
    return CliRunner().invoke(COMMANDS, [command, *map(str, arguments)])


def done(command: str, *arguments) -> str:
    """What a command prints that has to succeed."""
    result = run(command, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(command: str, *arguments) -> str:
    """The one line of a command that has to fail."""
    result = run(command, *arguments)
    assert result.exit_code != 0, result.stdout
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def shift(points: np.ndarray) -> np.ndarray:
    """Where a point of the reference lies in the scan: `SHIFT` away."""
    return points + SHIFT


def bend(points: np.ndarray) -> np.ndarray:
    """A smooth invertible map of points on top of an affine, up to some mm."""
    return scans.bend(points) @ TURN[:3, :3].T + TURN[:3, 3]


def places(grid: Grid) -> np.ndarray:
    """(I, J, K, 3) RAS mm of a grid's voxels."""
    return grid.to_physical(np.moveaxis(np.indices(grid.shape), 0, -1))


@dataclass(frozen=True)
class Pair:
    """Files of a reference, a scan, and the transform from the reference's space into the scan's.

    Attributes:
        move: the map, for points (..., 3) RAS mm.
        warp: field in ITK's convention with both sides in its GPU.
    """

    reference: Path
    scan: Path
    warp: Path
    move: Callable
    grid: Grid
    scan_grid: Grid

    def truth(self, grid: Grid | None = None) -> np.ndarray:
        """The scan as it is seen through the map from the voxels of the reference, or of another grid."""
        return scans.body(self.move(places(grid or self.grid)))


def make_pair(folder: Path, move=shift, grid: Grid | None = None, scan_grid: Grid | None = None) -> Pair:
    """The body as a scan, and seen through `move` as the reference, so that the warp takes the one to the other."""
    grid = grid or scans.grid((40, 44, 36), axes="LPS")
    scan_grid = scan_grid or scans.grid((44, 46, 42), axes="RAS")
    reference = scans.write_scan(folder / "reference.nii.gz", grid, move)
    scan = scans.write_scan(folder / "scan.nii.gz", scan_grid)
    warp = write_warp(folder / "warp.nii.gz", field(grid, move), reference, scan)
    return Pair(reference, scan, warp, move, grid, scan_grid)


def field(grid: Grid, move) -> Transform:
    """A map of points sampled on a grid."""
    return from_displacement((move(places(grid)) - places(grid)).astype(np.float32), grid)


def write_warp(path: Path, transform: Transform, start: Path, end: Path, convention: str = "itk") -> Path:
    """A transform with both images in its GPU."""
    write_transform(path, transform, convention, side(start), side(end))
    return path


def write_affine(path: Path, matrix: np.ndarray, start: Path, end: Path) -> Path:
    return write_warp(path, AffineTransform(matrix), start, end)


def side(path: Path) -> Space:
    source = read_source(path, "test")
    return Space(source.grid, source.sha256, path.name)


def write_series(path: Path, grid: Grid, moves) -> Path:
    write_volume(path, np.stack([scans.scan(grid, move) for move in moves], axis=-1), grid, step=(2.5, "sec"))
    return path


def write_plain_affine(path: Path, matrix: np.ndarray) -> Path:
    """Four rows of four numbers, as anyone might write them: no GPU."""
    np.savetxt(path, matrix, fmt="%.17g")
    return path
