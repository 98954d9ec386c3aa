"""Where a scan ends although the body goes on: an ellipsoid that is cut off or not, in any orientation."""

import numpy as np
import pytest

from runtime.geometry.field_of_view import field_of_view
from runtime.geometry.grid import Grid

SHAPE = (60, 70, 50)


def ellipsoid(shape=SHAPE, radii=(24, 30, 20)):
    axes = np.ogrid[tuple(map(slice, shape))]
    return (
        sum(((axis - (size - 1) / 2) / radius) ** 2 for axis, size, radius in zip(axes, shape, radii, strict=True)) <= 1
    )


def grid(shape=SHAPE, spacing=(1.0, 1.0, 1.0)):
    return Grid(shape, np.diag([*spacing, 1.0]))


def test_a_whole_body_is_cut_nowhere():
    view = field_of_view(ellipsoid(), grid())
    assert not view.sides.any()
    assert view.unseen is None and view.beyond(grid()) is None


def test_nor_if_the_image_ends_where_the_body_does():
    body = ellipsoid((48, 60, 40))
    assert not field_of_view(body, grid(body.shape)).sides.any()


def test_nor_in_thick_slices():
    body = ellipsoid()[:, :, 2::6]
    assert not field_of_view(body, grid(body.shape, (1, 1, 6))).sides.any()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("high", [False, True])
def test_a_body_cut_off_by_the_border_goes_on_beyond_it(axis, high):
    kept = slice(0, 35) if high else slice(20, None)
    part = tuple(kept if a == axis else slice(None) for a in range(3))
    body = ellipsoid()[part]
    start = [20 if a == axis and not high else 0 for a in range(3)]
    view = field_of_view(body, grid().crop(np.array(start), body.shape))
    assert [tuple(index) for index in np.argwhere(view.sides)] == [(axis, int(high))]
    assert view.unseen is None  # every voxel of the scan itself is seen
    expected = np.ones(SHAPE, bool)
    expected[part] = False
    assert np.array_equal(view.beyond(grid()), expected)


def test_padding_beyond_a_cut_is_not_seen():
    body = ellipsoid()
    body[:, :, 32:] = False
    view = field_of_view(body, grid())
    assert [tuple(index) for index in np.argwhere(view.sides)] == [(2, 1)]
    assert not view.unseen[:, :, :32].any() and view.unseen[:, :, 32:].all()


def test_what_lies_beyond_follows_a_physical_map():
    body = ellipsoid()
    body[:, :, 32:] = False
    shift = np.eye(4)
    shift[2, 3] = 5.0  # a voxel of the other grid shows what is five slices higher
    beyond = field_of_view(body, grid()).beyond(grid(), shift)
    assert not beyond[:, :, :27].any() and beyond[:, :, 27:].all()


def test_nothing_is_cut_where_there_is_nothing():
    assert not field_of_view(np.zeros(SHAPE, bool), grid()).sides.any()
