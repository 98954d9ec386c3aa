"""Positions of label maps, checked equally by every command; label maps and directions given as scans."""

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.images.intensity import PercentileRule
from runtime.images.kinds import looks_like_directions, looks_like_labels
from runtime.images.label_position import label_position_warnings
from runtime.images.scan_list import Scan
from runtime.images.volume import read_volume
from runtime.workflows.preparation.scan.native_scan import read_native
from tests import scans
from tests.known_pair import make_pair, refused, run
from tests.workflows.evaluated_pair import FIXED, LABELS, QUICK, SCANS, of_pair, runner, write_pair

GRID = scans.grid((20, 22, 18))


def shifted(mm: float):
    """The same grid, shifted along S."""
    return GRID.crop((0, 0, mm), GRID.shape)


class TestPlace:
    def test_on_the_grid_there_is_nothing_to_say(self):
        assert label_position_warnings(GRID, GRID, "labels", "the image") == ()

    def test_on_another_grid_it_is_told(self):
        (line,) = label_position_warnings(shifted(3), GRID, "labels", "the image")
        assert line == "the label map is not on the image's grid; its position is taken from its header"

    @pytest.mark.parametrize("mm", [18, 500])
    def test_apart_it_is_refused(self, mm):
        with pytest.raises(InputError, match=r"mask: a\.nii does not overlap the image .* give the mask of that scan"):
            label_position_warnings(shifted(mm), GRID, "mask: a.nii", "the image", "mask")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


class TestApply:
    def test_labels_on_another_grid_than_the_transforms_end(self, pair, tmp_path):
        path = scans.write_labels(tmp_path / "l.nii.gz", pair.scan_grid.crop((1, 1, 1), (30, 30, 30)))
        done = run("apply", "--labels", path, "-t", pair.warp, "--output", tmp_path / "o.nii.gz")
        assert done.exit_code == 0 and "the label map is not on the transform's moving scan's grid" in done.output

    def test_labels_apart_from_it(self, pair, tmp_path):
        path = scans.write_labels(tmp_path / "l.nii.gz", pair.scan_grid.crop((900, 0, 0), (30, 30, 30)))
        line = refused("apply", "--labels", path, "-t", pair.warp, "--output", tmp_path / "o.nii.gz")
        assert "--labels: " in line and "does not overlap the transform's moving scan" in line

    @pytest.mark.parametrize(("order", "reported"), [("linear", True), ("nearest", False)])
    def test_a_label_map_as_an_image(self, pair, tmp_path, order, reported):
        path = scans.write_labels(tmp_path / "l.nii.gz", pair.scan_grid)
        output = tmp_path / f"{order}.nii.gz"
        done = run("apply", "--image", path, "-t", pair.warp, "--output", output, "--interpolation", order)
        assert done.exit_code == 0 and ("looks like a label map" in done.output) == reported


class TestPrepare:
    def scan(self, folder, mm):
        image = scans.write_scan(folder / "a.nii.gz", GRID)
        return Scan(image, labels=scans.write_labels(folder / "l.nii.gz", shifted(mm)))

    def test_as_elsewhere(self, tmp_path):
        warnings = read_native(self.scan(tmp_path, 3), PercentileRule()).warnings
        assert "the label map is not on the image's grid; its position is taken from its header" in warnings
        with pytest.raises(InputError, match=r"labels: .*l\.nii\.gz does not overlap the image"):
            read_native(self.scan(tmp_path, 500), PercentileRule())


class TestEvaluate:
    @pytest.fixture
    def evaluated(self, tmp_path, engine_dir):
        """The result of a pair whose fixed label map is shifted by so many voxels."""

        def run_it(voxels: int, code: int = 0):
            pair = write_pair(tmp_path)
            scans.write_labels(pair.fixed_labels, FIXED.crop((0, 0, voxels), FIXED.shape))
            return runner(engine_dir)(*of_pair(pair, *SCANS, *LABELS), *QUICK, code=code)

        return run_it

    def test_apart(self, evaluated):
        line = evaluated(500, code=1).output
        assert "--fixed-labels: " in line and "does not overlap the fixed scan" in line

    def test_on_another_grid(self, evaluated, tmp_path):
        output = evaluated(2).output
        reported = "fl.nii.gz: the label map is not on the fixed scan's grid; its position is taken from its header"
        assert f"warning: f-m: {reported}" in output and reported in (tmp_path / "scores" / "scores.json").read_text()


class TestKinds:
    def test_regions_are_labels_and_scans_are_not(self):
        levels = np.digitize(scans.scan(GRID), (150, 450, 650))
        assert looks_like_labels(levels.astype(np.float32)) and looks_like_labels((levels > 0).astype(np.float32))
        noise = np.random.default_rng(0).integers(1, 256, (20, 20, 20)).astype(np.float32)
        for image in (np.rint(scans.scan(GRID)), levels + 0.5 * (levels > 0), noise, np.rint(scans.scan(GRID) / 4)):
            assert not looks_like_labels(image.astype(np.float32))

    def test_a_scan_that_is_a_label_map_is_read_with_a_doubt(self, tmp_path):
        path = scans.write_labels(tmp_path / "a.nii.gz", GRID)
        assert read_volume(path, "x").warnings == ("a.nii.gz: looks like a label map; expected a scan's intensities",)

    def test_directions_have_length_1(self):
        vectors = np.random.default_rng(0).normal(size=(8, 8, 8, 3))
        vectors[0] = 0
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        assert looks_like_directions(vectors / np.where(lengths > 0, lengths, 1))
        assert not looks_like_directions(vectors) and not looks_like_directions(vectors[..., 0])
