"""Scans that show a part of a body: the transform inside the common view is that of whole scans."""

import numpy as np
import pytest

from runtime.backends.parity import example_pair
from runtime.geometry.grid import Grid
from runtime.images.volume import Volume
from runtime.registration.options import Options
from runtime.registration.scans import FixedScan

CUT = 0.3  # share of the body that is left out
NEAR_MM = 8.0  # from the cut, where tissue of both sides plays a part


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A whole pair with background around it."""
    scans = (np.pad(image, 8) for image in example_pair((48, 56, 48), displacement=2.0))
    return tuple(Volume(data=np.ascontiguousarray(100 * scan), grid=Grid(scan.shape, np.eye(4))) for scan in scans)


def without_the_top(scan: Volume, padded: bool) -> tuple[Volume, int]:
    """Return the scan without the upper part of its body, and the first slice that is left out."""
    used = np.flatnonzero((scan.data > 5).any(axis=(0, 1)))
    first = int(used[0] + (1 - CUT) * len(used))
    data = scan.data.copy()
    data[:, :, first:] = 0
    if not padded:
        data = np.ascontiguousarray(data[:, :, :first])
    return Volume(data=data, grid=Grid(data.shape, scan.grid.affine)), first


def apart(one, other, below: int) -> np.ndarray:
    """Return the distance of two transforms in the slices below one, where the fixed scan shows something, mm."""
    distance = np.linalg.norm(one.displacement - other.displacement, axis=-1)[:, :, :below]
    return distance[one.fixed_volume.data[:, :, :below] > 5]


@pytest.mark.parametrize("padded", [False, True], ids=["cut off", "set to 0"])
def test_a_part_of_the_moving_scan_moves_as_in_the_whole(pair, engines, padded):
    fixed, moving = pair
    onto = FixedScan(fixed, engines, Options(affine="none"))
    whole = onto.register(moving)
    part, first = without_the_top(moving, padded)
    found = onto.register(part)
    assert found.working.holes[0] is None and found.working.holes[1] is not None
    assert np.percentile(apart(whole, found, first - int(NEAR_MM)), 95) < 0.5
    # Beyond the view nothing is pulled over: the flow fades instead of reaching across the part that is missing.
    beyond = np.linalg.norm(found.displacement, axis=-1)[:, :, first + int(NEAR_MM) :]
    assert beyond.max() < np.linalg.norm(whole.displacement, axis=-1).max()


@pytest.mark.parametrize("padded", [False, True], ids=["cut off", "set to 0"])
def test_and_so_does_the_whole_on_a_part_of_the_fixed_scan(pair, engines, padded):
    fixed, moving = pair
    whole = FixedScan(fixed, engines, Options(affine="none")).register(moving)
    part, first = without_the_top(fixed, padded)
    found = FixedScan(part, engines, Options(affine="none")).register(moving)
    assert np.percentile(apart(found, Cropped(whole, part), first - int(NEAR_MM)), 95) < 0.5


class Cropped:
    """The displacement of a registration on the slices that a part has."""

    def __init__(self, whole, part: Volume) -> None:
        self.displacement = whole.displacement[:, :, : part.grid.shape[2]]


def test_whole_scans_have_no_holes(pair, engines):
    found = FixedScan(pair[0], engines).register(pair[1])
    assert found.working.holes == (None, None)


def test_a_fixed_scan_serves_whole_scans_and_parts_in_any_order(pair, engines):
    """Features of a fixed image whose hole was filled from one moving scan are not kept for the next."""
    fixed, moving = pair
    part, _ = without_the_top(fixed, padded=False)
    onto = FixedScan(part, engines, Options(affine="none"))
    small = Volume(data=np.where(np.indices(moving.data.shape)[2] < 20, moving.data, 0), grid=moving.grid)
    results = [onto.register(scan).displacement for scan in (moving, small, moving)]
    assert np.array_equal(results[0], results[2])
