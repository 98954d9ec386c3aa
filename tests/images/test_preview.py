"""The preview picture: orientation and layout, and correct grid lines, colours and folds."""

import numpy as np
import pytest
from PIL import Image

from runtime.geometry.flow import identity, warp
from runtime.images.pictures import panels, planes, preview

SHAPE = (40, 48, 32)


@pytest.fixture
def images():
    """A soft ball, the same ball 3 voxels further right, that ball brought back, and the flow that does it."""

    def ball(right):
        i, j, k = identity(SHAPE)
        distance = np.sqrt((i - 20 - right) ** 2 + (j - 24) ** 2 + (k - 16) ** 2)
        return np.clip((13 - distance) / 4, 0, 1).astype(np.float32)

    flow = np.zeros((3, *SHAPE), np.float32)
    flow[0] = 3
    return ball(0), ball(3), warp(ball(3), flow), flow


def share_of(picture, colour):
    """Share of pixels within a few grey values of a colour."""
    return np.mean(np.abs(np.asarray(picture, float) - colour).max(axis=-1) < 8)


class TestOrientation:
    """Each plane is cut from three volumes that hold the R, A and S coordinate of every voxel."""

    @pytest.fixture
    def cuts(self):
        return {plane.name: (plane, plane.cut(identity(SHAPE))) for plane in planes.middle_planes(SHAPE)}

    @pytest.mark.parametrize("name, rows, columns", [("sagittal", 2, 1), ("coronal", 2, 0), ("axial", 1, 0)])
    def test_coordinates_fall_downwards_and_to_the_right(self, cuts, name, rows, columns):
        plane, cut = cuts[name]
        assert plane.in_plane == (rows, columns)
        assert np.all(np.diff(cut[rows], axis=0) == -1) and np.all(np.diff(cut[rows], axis=1) == 0)
        assert np.all(np.diff(cut[columns], axis=1) == -1) and np.all(np.diff(cut[columns], axis=0) == 0)
        assert np.all(cut[plane.axis] == SHAPE[plane.axis] // 2)

    def test_letters_name_the_sides_they_stand_on(self, cuts):
        letters = {0: ("R", "L"), 1: ("A", "P")}  # the larger coordinate is at the left of the picture
        for plane, _ in cuts.values():
            assert plane.sides == letters[plane.in_plane[1]]


class TestGrid:
    def test_lines_lie_where_the_moving_image_has_them(self):
        """A sheet at voxel 16 of the moving image, warped, must lie under the line of voxel 16."""
        coronal = planes.middle_planes(SHAPE)[1]
        i, _, k = identity(SHAPE)
        flow = np.zeros((3, *SHAPE), np.float32)
        flow[0] = 2.5 * np.sin(i / 9) + 0.1 * (k - 16)
        sheet = warp(np.exp(-((i - 16) ** 2) / 2).astype(np.float32), flow)
        zeros = np.zeros(SHAPE, np.float32)
        folded = np.zeros(coronal.cut(zeros).shape, bool)
        lines = panels.warped_grid(coronal, zeros, flow, folded, scale=6)[..., 1]
        ridge = panels.enlarged(coronal.cut(sheet), 6)[90]
        columns = np.flatnonzero(lines[90] > 0.6 * lines.max())
        assert np.abs(columns - ridge.argmax()).min() <= 3  # half a voxel

    def test_a_line_is_as_wide_on_screen_wherever_the_grid_is_stretched(self):
        for stretch in (0.5, 1.0, 2.0):
            position = np.tile(4 + stretch * np.arange(1024) / 8, (8, 1))
            lines_crossed = position.max() // 8
            assert panels.line_coverage(position)[4].sum() == pytest.approx(panels.LINE_WIDTH * lines_crossed, rel=0.02)

    def test_without_a_flow_the_lines_are_straight_and_8_voxels_apart(self):
        plane = planes.middle_planes(SHAPE)[2]
        zeros = np.zeros(SHAPE, np.float32)
        folded = np.zeros(plane.cut(zeros).shape, bool)
        picture = panels.warped_grid(plane, zeros, np.zeros((3, *SHAPE), np.float32), folded, scale=4)[..., 1]
        along = picture[np.argmin(picture.mean(axis=1))]
        centres = np.flatnonzero((along > 100) & (along >= np.roll(along, 1)) & (along > np.roll(along, -1)))
        assert len(centres) >= 4 and np.all(np.abs(np.diff(centres) - 8 * 4) <= 1)

    def test_folds_are_red_and_only_folds(self, images):
        fixed, moving, warped, flow = images
        assert share_of(preview.draw_preview(fixed, moving, warped, flow), panels.FOLD) == 0
        i, j, k = identity(SHAPE)
        flow[0] -= 3 * (i - 20) * (np.maximum(abs(i - 20), np.maximum(abs(j - 24), abs(k - 16))) < 4)
        assert share_of(preview.draw_preview(fixed, moving, warped, flow), panels.FOLD) > 0

    def test_folds_in_a_plane_are_those_of_the_volume(self):
        flow = np.random.default_rng(0).normal(0, 1, (3, *SHAPE)).astype(np.float32)
        folds = planes.jacobian_determinant(flow) <= 0
        assert 0.02 < folds.mean() < 0.9
        for plane in planes.middle_planes(SHAPE):
            np.testing.assert_array_equal(plane.folded(flow), plane.cut(folds))


class TestDifferences:
    def test_colours_tell_the_sign(self):
        colours = panels.signed(np.array([[-1.0, 0.0, 1.0]]))[0]
        np.testing.assert_allclose(colours, [panels.BELOW, panels.PANEL, panels.ABOVE])

    def test_contrast_alone_makes_no_difference(self, images):
        fixed = images[0]
        before, after = panels.matched_differences(fixed, fixed**2, fixed**2, fixed > 0.1)
        assert np.abs(after).max() < 0.05 < np.abs(fixed - fixed**2).max()
        np.testing.assert_array_equal(before, after)

    def test_alignment_does(self, images):
        fixed, moving, warped, _ = images
        before, after = panels.matched_differences(fixed, moving, warped, (fixed > 0.1) & (warped > 0.1))
        assert np.abs(after).mean() < 0.05 * np.abs(before).mean()
        assert before[33, 24, 16] > 0 > before[8, 24, 16]  # the moving ball lies further to the right


class TestFile:
    def test_is_a_picture_of_the_promised_width(self, images, tmp_path):
        preview.write_preview(tmp_path / "preview.png", *images)
        assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
        with Image.open(tmp_path / "preview.png") as picture:
            picture.load()
            assert picture.format == "PNG" and picture.mode == "RGB" and picture.width == preview.WIDTH

    def test_a_failure_leaves_the_old_file(self, images, tmp_path, monkeypatch):
        path = tmp_path / "preview.png"
        path.write_bytes(b"old")

        def break_off(self, file, **options):
            with open(file, "wb") as stream:
                stream.write(b"half a")
            raise OSError("disk full")

        monkeypatch.setattr(Image.Image, "save", break_off)
        with pytest.raises(OSError, match="disk full"):
            preview.write_preview(path, *images)
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("shape", [(16, 16, 16), (16, 24, 120), (8, 64, 16)])
    def test_other_proportions_and_empty_images_are_drawn(self, shape):
        noise = np.random.default_rng(0).random(shape, np.float32)
        for image in (noise, np.zeros(shape, np.float32)):
            picture = preview.draw_preview(image, image, image, np.zeros((3, *shape), np.float32))
            assert picture.width == preview.WIDTH and picture.height < 1.5 * picture.width
