"""Masks: excluded voxels influence nothing, and a mask that excludes nothing changes nothing."""

import numpy as np
import pytest

import runtime
from runtime.backends.parity import example_pair
from runtime.errors import InputError
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.masks import Mask, filled
from runtime.images.volume import Volume
from runtime.registration.options import Options
from runtime.registration.output.folder import Outputs
from tests import scans

QUICK = Options(schedule="1,1,1,1")
GRID = scans.grid()
HOLE = tuple(slice(middle - 4, middle + 4) for middle in (18, 24, 17))


def ball(shape, radius, centre=None) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2 if centre is None else centre
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def with_hole(kind=np.uint8) -> Volume:
    keep = np.ones(GRID.shape, kind)
    keep[HOLE] = 0
    return Volume(data=keep, grid=GRID)


def scan(move=lambda points: points, hole=None) -> Volume:
    data = scans.scan(GRID, move)
    if hole is not None:
        data[HOLE] = hole
    return Volume(data=data, grid=GRID)


class TestWhatIsLeftOut:
    def test_beyond_the_mask_is_background_and_enclosed_by_it_is_a_hole(self):
        brain, lesion = ball((24, 26, 22), 9), ball((24, 26, 22), 3)
        assert np.array_equal(Mask(brain & ~lesion).holes, lesion)
        assert Mask(brain).holes is None

    def test_with_a_mask_of_all_but_the_lesion_a_lesion_at_the_surface_is_a_hole_too(self):
        brain, lesion = ball((24, 26, 22), 9), ball((24, 26, 22), 3, (11, 20, 11))
        assert np.array_equal(Mask(~lesion).holes, lesion)
        assert Mask(brain & ~lesion).holes is None

    def test_intensities_are_scaled_by_what_counts(self):
        """A bright implant outside the mask does not influence the scale."""
        from runtime.images.intensity import PercentileRule
        from runtime.registration.preprocessing import normalised

        bright = scan()
        bright.data[:3] = 50_000
        mask = Mask(np.broadcast_to((np.arange(GRID.shape[0]) >= 3)[:, None, None], GRID.shape))
        image = normalised(bright, PercentileRule(), "scan", mask).image
        assert np.array_equal(image[3:], PercentileRule().normalise(mask.applied(scan().data, 0))[3:])
        assert not image[:3].any()

    def test_each_image_shows_the_other_in_its_holes_and_nothing_where_both_have_one(self):
        fixed, moving = (np.full((2, 2, 2), value, np.float32) for value in (0.25, 0.5))
        one, other = np.zeros((2, 2, 2, 2), bool)
        one[0], other[:, 0] = True, True
        seen = filled(fixed, moving, one, other)
        assert seen[0].tolist() == [[[0, 0], [0.5, 0.5]], [[0.25, 0.25]] * 2]
        assert seen[1].tolist() == [[[0, 0], [0.5, 0.5]], [[0.25, 0.25], [0.5, 0.5]]]
        assert all(a is b for a, b in zip(filled(fixed, moving, None, None), (fixed, moving), strict=True))


class TestRegistration:
    @pytest.mark.parametrize("similarity", ["ncc", "lncc", "mse"])
    @pytest.mark.parametrize("side", ["fixed", "moving"])
    def test_what_lies_in_a_hole_changes_nothing_to_the_bit(self, engines, side, similarity):
        """Affine initialisation, intensities, similarity, features and flow stay the same."""
        options = Options(similarity=similarity)
        results = []
        for value in (0, 300, 20_000):
            holed = {"fixed": scan(), "moving": scan(scans.bend)}
            holed[side] = scan(scans.bend if side == "moving" else lambda points: points, value)
            masks = {f"{side}_mask": with_hole()}
            results.append(runtime.register(*holed.values(), engines, options, **masks))
        first, *others = results
        for other in others:
            assert np.array_equal(first.displacement, other.displacement)
            assert first.iterations.passes == other.iterations.passes
            assert str(first.affine_initialisation) == str(other.affine_initialisation)

    def test_a_mask_of_everything_changes_nothing_to_the_bit(self, engines):
        everything = Volume(data=np.ones(GRID.shape, np.uint8), grid=GRID)
        plain = runtime.register(scan(), scan(scans.bend), engines, QUICK)
        masked = runtime.register(
            scan(), scan(scans.bend), engines, QUICK, fixed_mask=everything, moving_mask=everything
        )
        assert np.array_equal(plain.displacement, masked.displacement)
        assert plain.similarity_before == masked.similarity_before

    def test_a_mask_of_the_brain_is_as_good_as_a_scan_that_is_stripped(self, engines):
        brain = Volume(data=(scans.scan(GRID, scans.bend) > 100).astype(np.uint8), grid=GRID)
        head = scan(scans.bend)
        head.data[brain.data == 0] += 400
        stripped = Volume(data=scan(scans.bend).data * brain.data, grid=GRID)
        expected = runtime.register(scan(), stripped, engines, QUICK)
        found = runtime.register(scan(), head, engines, QUICK, moving_mask=brain)
        assert np.array_equal(expected.displacement, found.displacement)

    def test_several_moving_scans_on_a_fixed_one_with_a_hole_are_those_alone(self, engines):
        """The filling of the fixed scan's hole differs with every moving scan."""
        movings = (scan(scans.bend), scan())
        onto = runtime.FixedScan(scan(), engines, QUICK, mask=with_hole())
        for moving in movings:
            alone = runtime.register(scan(), moving, engines, QUICK, fixed_mask=with_hole())
            assert np.array_equal(onto.register(moving).displacement, alone.displacement)

    def test_holes_go_with_the_moving_image_from_one_pass_of_a_cascade_to_the_next(self, engines):
        results = [
            runtime.register(scan(), scan(scans.bend, value), engines, Options(schedule="cascade:2"), moving_mask=mask)
            for value, mask in ((0, with_hole()), (9000, with_hole(np.int16)))
        ]
        assert np.array_equal(*(result.displacement for result in results))


class TestArrays:
    """The loop alone, on images of one grid."""

    def images(self):
        fixed, moving = example_pair((24, 32, 16))
        mask = np.ones(fixed.shape, bool)
        mask[8:14, 10:18, 5:11] = False
        return fixed, moving, mask

    @pytest.mark.parametrize("side", ["fixed_mask", "moving_mask"])
    def test_what_lies_in_a_hole_changes_nothing_to_the_bit(self, engines, side):
        fixed, moving, mask = self.images()
        flows = []
        for value in (0.0, 1.0):
            pair = [fixed, moving]
            index = int(side == "moving_mask")
            pair[index] = np.where(mask, pair[index], np.float32(value))
            flows.append(runtime.register_arrays(engines, *pair, **{side: mask}).flow)
        assert np.array_equal(*flows)

    def test_a_mask_of_another_shape_is_refused(self, engines):
        fixed, moving, mask = self.images()
        with pytest.raises(InputError, match=r"moving_mask: got shape .*, expected \(24, 32, 16\), its image's"):
            runtime.register_arrays(engines, fixed, moving, moving_mask=mask[1:])


class TestRefusals:
    def test_a_mask_that_lies_elsewhere(self, engines):
        far = GRID.affine.copy()
        far[:3, 3] += 500
        mask = Volume(data=np.ones(GRID.shape, np.uint8), grid=type(GRID)(GRID.shape, far))
        with pytest.raises(InputError, match=r"--moving-mask: the mask does not overlap .* in physical space"):
            runtime.register(scan(), scan(), engines, QUICK, moving_mask=mask)

    def test_a_mask_that_keeps_nothing(self, engines):
        mask = Volume(data=np.zeros(GRID.shape, np.uint8), grid=GRID)
        with pytest.raises(InputError, match=r"--fixed-mask: the mask contains no voxel of its scan"):
            runtime.register(scan(), scan(), engines, QUICK, fixed_mask=mask)


def test_the_command_takes_both_masks_and_reports_them(register_files_of, tmp_path):
    report = register_files_of(fixed_mask=with_hole(), moving_mask=with_hole())
    assert set(report["inputs"]) == {"fixed", "moving", "fixed_mask", "moving_mask"}
    assert report["inputs"]["fixed_mask"]["path"].endswith("fixed_mask.nii.gz")


@pytest.fixture
def register_files_of(engine_dir, tmp_path):
    """Write scans and masks, run the command, and return the report."""
    import json

    from click.testing import CliRunner

    from cli import main

    def run(**masks):
        words = ["register", "--engine-dir", engine_dir, "--output", tmp_path / "out", "--schedule", "0,0,0,0"]
        for name, volume in {"fixed": scan(), "moving": scan(scans.bend), **masks}.items():
            path = tmp_path / f"{name}.nii.gz"
            write_volume(path, volume.data, volume.grid)
            words += [f"--{name.replace('_', '-')}", path]
        result = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(
            Outputs().names("fixed", "moving", labels=False)
        )
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return run
