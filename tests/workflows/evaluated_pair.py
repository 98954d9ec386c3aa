"""Helpers for tests of `evaluate`: files of a pair with a known transform, a shift, and the command on it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from click.testing import CliRunner

from runtime.commands.evaluate import evaluate as command
from runtime.geometry.grid import Grid
from tests import scans

SHIFT = np.array((3.0, -2.0, 4.0))  # mm, whole voxels: a point x of the fixed scan lies at x + SHIFT in the moving one
FIXED = scans.grid((40, 44, 40))
QUICK = ("--affine", "none", "--schedule", "1,1,1,1")
LANDMARKS = scans.CENTRE + np.array([[0, 0, 0], [4, -3, 2], [-5, 6, 1]])
SCANS, LABELS = ("fixed", "moving", "output"), ("fixed_labels", "moving_labels")
POINTS = ("fixed_landmarks", "moving_landmarks")


def write_pair(folder: Path, moving: Grid = FIXED) -> SimpleNamespace:
    """Write a body, the same body shifted, labels, landmarks, and the shift as an affine."""

    def shifted(points):
        return points - SHIFT

    matrix = np.eye(4)
    matrix[:3, 3] = SHIFT
    np.savetxt(folder / "shift.txt", matrix)
    for name, points in (("fixed", LANDMARKS), ("moving", LANDMARKS + SHIFT)):
        np.savetxt(folder / f"{name}.csv", points, delimiter=",", header="r,a,s", comments="")
    return SimpleNamespace(
        fixed=scans.write_scan(folder / "f.nii.gz", FIXED),
        moving=scans.write_scan(folder / "m.nii.gz", moving, shifted),
        fixed_labels=scans.write_labels(folder / "fl.nii.gz", FIXED),
        moving_labels=scans.write_labels(folder / "ml.nii.gz", moving, shifted),
        fixed_landmarks=folder / "fixed.csv",
        moving_landmarks=folder / "moving.csv",
        shift=folder / "shift.txt",
        output=folder / "scores",
    )


def of_pair(pair: SimpleNamespace, *names: str) -> list[str]:
    """Return the options that name files of a pair."""
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(pair, name)))]


def write_list(pair: SimpleNamespace, *lines: str, columns: str = "transform") -> Path:
    """Write a list of pairs to the folder of the pair's files."""
    path = pair.fixed.parent / "pairs.csv"
    path.write_text("\n".join((f"name,fixed,moving,fixed_labels,moving_labels,{columns}", *lines)) + "\n")
    return path


def runner(engine_dir: Path) -> Callable:
    """Return a function that runs the command on an engine set, or on those in `sets`."""

    def invoke(*arguments, code=0, sets=(), **settings):
        folders = sets or (engine_dir,)
        engines = [part for folder in folders for part in ("--engine-dir", str(folder))]
        result = CliRunner().invoke(command, [*map(str, arguments), *engines], **settings)
        assert result.exit_code == code, result.output
        return result

    return invoke


def scores(folder: Path) -> dict[str, dict]:
    """Return the first pair's scores by method."""
    return json.loads((folder / "scores.json").read_text())["pairs"][0]["methods"]
