"""Chains of transforms in the wrong direction are rejected, and the message states the correct chain."""

from pathlib import Path

import numpy as np
import pytest

from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform
from runtime.transforms import DirectionError, ReadLink, Space, TransformFile, check_direction


def space(name: str, size: int) -> Space:
    return Space(Grid((size, size, size), np.eye(4)), name[0] * 64, name)


FIXED, MIDDLE, MOVING = space("fixed.nii", 10), space("middle.nii", 20), space("scan.nii", 30)
SEGMENTATION = Space(MOVING.grid, "9" * 64, "labels.nii")  # another file on the moving image's grid
NO_FILE = Space(MOVING.grid)  # a label map as `apply` takes it: of its scan it has the grid alone
FIXED_SEGMENTATION = Space(FIXED.grid, "8" * 64, "fixed_labels.nii")
ELSEWHERE = space("elsewhere.nii", 40)


def file(name: str, start: Space | None, end: Space | None) -> TransformFile:
    return TransformFile(AffineTransform(np.eye(4)), "itk", Path(name), start, end)


def chain_of(*links: tuple[TransformFile, bool]) -> list[ReadLink]:
    return [ReadLink(*link) for link in links]


WARP = file("warp", FIXED, MOVING)
FIRST, SECOND = file("first", FIXED, MIDDLE), file("second", MIDDLE, MOVING)
UNKNOWN = file("unknown", None, None)


@pytest.mark.parametrize(
    ("chain", "scan", "reference"),
    [
        ([(WARP, False)], MOVING, FIXED),
        ([(WARP, True)], FIXED, MOVING),
        ([(WARP, False)], SEGMENTATION, FIXED),
        ([(WARP, False)], SEGMENTATION, None),
        ([(WARP, False)], None, None),
        ([(WARP, False)], ELSEWHERE, ELSEWHERE),
        ([(WARP, False)], MOVING, ELSEWHERE),
        ([(FIRST, False), (SECOND, False)], MOVING, FIXED),
        ([(SECOND, True), (FIRST, True)], FIXED, MOVING),
        ([(UNKNOWN, False)], MOVING, FIXED),
        ([(WARP, False), (UNKNOWN, True)], ELSEWHERE, FIXED),
        ([], MOVING, FIXED),
        ([(WARP, False)], NO_FILE, MOVING),
        ([(WARP, False)], SEGMENTATION, MOVING),
        ([(WARP, False)], FIXED_SEGMENTATION, None),
        ([(FIRST, False), (SECOND, False)], NO_FILE, MIDDLE),
        ([(FIRST, False), (SECOND, False)], MOVING, MOVING),
    ],
)
def test_what_fits_or_may_fit_passes(chain, scan, reference):
    check_direction(chain_of(*chain), scan, reference)


@pytest.mark.parametrize(
    ("chain", "scan", "reference", "right"),
    [
        ([(WARP, True)], MOVING, FIXED, "-t warp"),
        ([(WARP, False)], FIXED, MOVING, "-t warp,inverse"),
        ([(WARP, True)], MOVING, None, "-t warp"),
        ([(WARP, True)], None, FIXED, "-t warp"),
        ([(WARP, True)], SEGMENTATION, FIXED, "-t warp"),
        ([(WARP, False)], FIXED_SEGMENTATION, SEGMENTATION, "-t warp,inverse"),
        ([(FIRST, False), (SECOND, True)], MOVING, FIXED, "-t first -t second"),
        ([(FIRST, True), (SECOND, False)], MOVING, FIXED, "-t first -t second"),
        ([(FIRST, False), (SECOND, False)], FIXED, MOVING, "-t second,inverse -t first,inverse"),
        ([(FIRST, True), (UNKNOWN, False)], MOVING, FIXED, "-t first -t unknown"),
    ],
)
def test_the_wrong_way_round_is_refused_with_what_is_right(chain, scan, reference, right):
    with pytest.raises(DirectionError, match=rf"the wrong direction .*; use {right}$") as refusal:
        check_direction(chain_of(*chain), scan, reference)
    assert "\n" not in str(refusal.value)
    check_direction(refusal.value.better, scan, reference)


def test_on_one_grid_only_hashes_tell():
    """Images prepared onto a common grid, as in Learn2Reg."""
    moving = Space(FIXED.grid, MOVING.sha256, "moving.nii")
    warp = file("warp", FIXED, moving)
    for scan in (moving, FIXED_SEGMENTATION, None):
        check_direction(chain_of((warp, False)), scan, FIXED)
    with pytest.raises(DirectionError, match=r"use -t warp,inverse$"):
        check_direction(chain_of((warp, False)), FIXED, moving)
    with pytest.raises(DirectionError, match=r"use -t warp,inverse$"):
        check_direction(chain_of((warp, False)), Space(FIXED.grid), moving)


def test_the_scan_is_surer_than_the_reference():
    """The reference may be any grid in the chain's start, the scan must lie in its end."""
    check_direction(chain_of((WARP, False)), MOVING, MOVING)
    with pytest.raises(DirectionError, match=r"use -t warp,inverse$"):
        check_direction(chain_of((WARP, False)), FIXED, FIXED)


def test_a_scan_on_the_fixed_grid_that_is_another_file_may_lie_in_the_moving_space():
    """Such as one resampled by its header alone."""
    check_direction(chain_of((WARP, False)), FIXED_SEGMENTATION, FIXED)
