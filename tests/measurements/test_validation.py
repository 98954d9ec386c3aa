"""The validation on realistic pairs: pairs, degradations, scores, and resumption."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from measurements.validation.__main__ import main
from measurements.validation.degradations import THICKNESS, write_degraded
from measurements.validation.methods import parse_options
from measurements.validation.scans import SUBJECTS, TUTORIAL, Catalogue
from measurements.validation.structures import joined, mean_by_group
from measurements.validation.template import majority, overlaps
from runtime.errors import InputError
from runtime.images.volume import read_volume
from tests import scans

GRID = scans.grid((40, 44, 40))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folders for the validation with a small body in place of every scan."""
    folder = tmp_path_factory.mktemp("data")
    for name in (*(f"mindboggle/{subject}" for subject in SUBJECTS), *(f"pair/{side}" for side in TUTORIAL)):
        (folder / name).parent.mkdir(exist_ok=True)
        scans.write_scan(folder / f"{name}_t1.nii.gz", GRID)
        scans.write_labels(folder / f"{name}_labels.nii.gz", GRID)
    return folder


class TestPairs:
    def test_every_subject_meets_both_scans_of_the_tutorial(self, data, tmp_path):
        couples = Catalogue(data, tmp_path).couples(("across",))
        assert {(c.one.name, c.other.name) for c in couples} == {(t, s) for t in TUTORIAL for s in SUBJECTS}

    def test_halves_share_nothing_and_each_has_both_scans_of_the_tutorial(self, data, tmp_path):
        a, b = (Catalogue(data, tmp_path).couples(("across",), half) for half in "ab")
        assert not {c.name for c in a} & {c.name for c in b} and len(a) == len(b)
        assert {c.one.name for c in a} == {c.one.name for c in b} == set(TUTORIAL)

    def test_an_absent_scan_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"--data: .*s3_t1.nii.gz is missing"):
            Catalogue(tmp_path, tmp_path).couples(("chain",))


class TestDegradations:
    def test_thick_slices_lie_where_the_voxels_they_are_the_mean_of_do(self, tmp_path):
        path = scans.write_scan(tmp_path / "scan.nii.gz", GRID)
        scan = read_volume(path, "scan")
        write_degraded(tmp_path / "thick.nii.gz", scan, "thick")
        thick = read_volume(tmp_path / "thick.nii.gz", "scan")
        assert thick.grid.spacing == pytest.approx((1, 1, THICKNESS))
        first = scan.grid.to_physical(np.array([[0.0, 0.0, (THICKNESS - 1) / 2]]))
        assert thick.grid.to_physical(np.zeros((1, 3))) == pytest.approx(first)
        scale = np.percentile(scan.data[scan.data > 0], 99)
        means = scan.data.reshape(*scan.data.shape[:2], -1, THICKNESS).mean(axis=-1) / scale
        assert thick.data == pytest.approx(means, abs=1e-5)

    @pytest.mark.parametrize("kind", ["noise", "contrast", "bias"])
    def test_the_background_stays_black_and_the_body_changes(self, tmp_path, kind):
        scan = read_volume(scans.write_scan(tmp_path / "scan.nii.gz", GRID), "scan")
        write_degraded(tmp_path / "harder.nii.gz", scan, kind)
        harder = read_volume(tmp_path / "harder.nii.gz", "scan").data
        assert not harder[scan.data == 0].any()
        scaled = scan.data / np.percentile(scan.data[scan.data > 0], 99)
        assert np.abs(harder - scaled)[scan.data > 0].mean() > 0.02


class TestStructures:
    def test_parcels_of_a_side_become_its_cortex_and_other_labels_stay(self):
        labels = np.array([0, 17, 1002, 1035, 2005, 6, 45], np.int32)
        assert joined(labels).tolist() == [0, 17, 3, 3, 42, 8, 47]

    def test_groups_are_means_of_their_own_labels(self):
        means = mean_by_group({3: 0.5, 1002: 0.7, 17: 0.9, 4: 0.2})
        assert means == pytest.approx({"all": 0.575, "cortex": 0.6, "deep": 0.9, "ventricles": 0.2})


class TestTemplate:
    def test_the_vote_is_the_label_most_maps_have(self):
        maps = [np.array(labels, np.uint16) for labels in ([1, 2, 0, 5], [1, 3, 0, 4], [2, 3, 7, 3])]
        assert majority(maps).tolist() == [1, 3, 0, 3]

    def test_subjects_that_agree_in_the_template_overlap_wholly_both_ways(self, tmp_path):
        labels = np.repeat(np.arange(4, dtype=np.uint16), 60)
        for name in "abc":
            np.savez(tmp_path / f"{name}.npz", carried=labels, labels=labels, places=np.arange(240))
        found = overlaps({name: tmp_path / f"{name}.npz" for name in "abc"})
        assert found["a"]["forward"] == found["a"]["backward"] == {1: 1.0, 2: 1.0, 3: 1.0}

    def test_half_a_label_moved_elsewhere_has_the_dice_of_the_other_half(self, tmp_path):
        labels = np.repeat(np.array([1, 0], np.uint16), 100)
        moved = np.roll(labels, 50)
        for name, carried in (("a", labels), ("b", moved), ("c", moved)):
            np.savez(tmp_path / f"{name}.npz", carried=carried, labels=labels, places=np.arange(200))
        found = overlaps({name: tmp_path / f"{name}.npz" for name in "abc"})
        assert found["a"]["forward"] == found["a"]["backward"] == {1: 0.5}
        assert found["b"]["forward"] == {1: 0.75}


class TestCommand:
    def test_a_method_is_an_options_text(self):
        options = parse_options("iterstop:delta=0.001:on_stop=revert")
        assert (options.schedule, options.delta, options.on_stop) == ("iterstop", 0.001, "revert")
        with pytest.raises(InputError, match="got 'deltas'"):
            parse_options("iterstop:deltas=1")

    def test_both_directions_are_scored_and_a_second_run_registers_nothing(self, data, engine_dir, tmp_path):
        given = ["--data", data, "--output", tmp_path, "--engine-dir", engine_dir, "--group", "pair"]
        first = CliRunner().invoke(main, [*map(str, given), "--schedule", "1,1,1,1", "--affine", "none"])
        assert first.exit_code == 0, first.output
        records = sorted((tmp_path / "records").rglob("*.json"))
        assert len(records) == 2  # the affine alone and the schedule
        for record in map(json.loads, (path.read_text() for path in records)):
            for direction in ("forward", "backward"):
                assert min(record[direction]["dice"].values()) == pytest.approx(1, abs=0.15)  # one body, on itself
        written = [path.stat().st_mtime_ns for path in records]
        again = CliRunner().invoke(main, [*map(str, given), "--schedule", "1,1,1,1", "--affine", "none"])
        assert again.stdout == first.stdout
        assert [path.stat().st_mtime_ns for path in records] == written
