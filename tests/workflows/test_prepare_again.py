"""Repeated preparation: complete results are kept; missing, changed or failed ones are made; the rest is untouched."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.scan_list import Scan, distinct_names, read_scan_list
from runtime.workflows.preparation import prepare_scans
from runtime.workflows.preparation.output.folder import OutputFolder
from runtime.workflows.preparation.processes import outcomes
from runtime.workflows.preparation.scan.alignment import Aligner
from runtime.workflows.preparation.scan.reference import open_reference
from tests import scans
from tests.workflows.preparation import affine_map, moved, options, write_list


@pytest.fixture
def out(prepared, tmp_path):
    """A copy of the prepared folder for a second run."""
    return Path(shutil.copytree(prepared.folder, tmp_path / "out"))


def picture(folder) -> np.ndarray:
    """The contact sheet, (rows, columns, 3) uint8."""
    with Image.open(folder / "contact_sheet.png") as sheet:
        return np.asarray(sheet.convert("RGB"))


class TestFailures:
    """The error of one scan is recorded; the others continue."""

    def test_each_has_its_reason_and_the_rest_is_prepared(self, native_copy, tmp_path):
        native = native_copy
        (native / "cut.nii.gz").write_bytes((native / "turned.nii.gz").read_bytes()[:900])
        place = scans.grid((44, 50, 42))
        write_volume(native / "empty.nii.gz", np.zeros(place.shape, np.uint8), place)
        write_volume(native / "minus.nii.gz", np.full(place.shape, -1, np.int16), place)
        lines = ["image,labels,mask", "first.nii.gz,first_labels.nii.gz,", "cut.nii.gz,,", "turned.nii.gz,,"]
        lines += ["shifted.nii.gz,minus.nii.gz,", "first_labels.nii.gz,,empty.nii.gz"]
        write_list(native, *lines)
        result = prepare_scans(options(native, tmp_path / "out"))
        errors = {record["name"]: record["error"] for record in result.failures}
        assert "cut.nii.gz cannot be read, damaged, truncated" in errors.pop("cut")
        assert "minus.nii.gz holds -1, expected 0 and above" in errors.pop("shifted")
        assert "empty.nii.gz keeps no voxel" in errors.pop("first_labels") and not errors
        listed = [scan.image.name for scan in read_scan_list("data", str(result.table))]
        assert listed == ["first.nii.gz", "turned.nii.gz"]
        stored = json.loads((result.folder / "records" / "cut.json").read_text())
        assert stored["error"].startswith("image: ") and "traceback" not in stored
        assert stored["inputs"]["image"]["sha256"]
        assert "prepared    2 of 5 scans" in result.summary() and "3 failed" in result.summary()

    def test_what_nobody_foresaw_is_recorded_with_its_traceback(self, native, tmp_path, monkeypatch):
        def broken(self, image, grid):
            raise MemoryError

        monkeypatch.setattr(Aligner, "align", broken)
        result = prepare_scans(options(native, tmp_path / "out"))
        assert len(result.failures) == 3 and result.table is None
        assert result.failures[0]["error"].startswith("MemoryError")
        assert "in broken" in result.failures[0]["traceback"]
        assert not list((result.folder / "images").iterdir())

    def test_a_failure_takes_earlier_results_away_and_is_tried_again(self, native_copy, tmp_path, out):
        native = native_copy
        good = (native / "turned.nii.gz").read_bytes()
        (native / "turned.nii.gz").write_bytes(good[:900])
        result = prepare_scans(options(native, tmp_path / "out"))
        assert (len(result.failures), result.kept) == (1, 2)
        assert not (result.folder / "images" / "turned.nii.gz").exists()
        (native / "turned.nii.gz").write_bytes(good)
        again = prepare_scans(options(native, tmp_path / "out"))
        assert (len(again.failures), again.kept) == (0, 2)

    def test_a_reference_that_cannot_be_used_stops_everything(self, native, tmp_path):
        with pytest.raises(InputError, match=r"--reference: nowhere\.nii does not exist"):
            prepare_scans(options(native, tmp_path / "out", reference="nowhere.nii"))

    def test_a_process_ended_by_the_system_is_one_line(self, native, tmp_path):
        class Deadly:
            """Ends the process that unpickles it."""

            def __reduce__(self):
                return os._exit, (1,)

        choices = options(native, tmp_path / "out", jobs=2)
        reference = open_reference(choices, Scan(native / "first.nii.gz"))
        with pytest.raises(InputError, match=r"--jobs: one of 2 processes was ended by the system.* are kept"):
            list(outcomes(choices, reference, OutputFolder(choices.output, []), {"a": Deadly()}))


class TestAgain:
    """A second run makes only missing results."""

    def times(self, folder):
        return {path: path.stat().st_mtime_ns for name in ("images", "labels") for path in (folder / name).iterdir()}

    def kept_of_turned(self, native, folder, **choices) -> int:
        """Prepare a list of the second scan alone; return the number kept, 1 or 0."""
        listed = folder / "turned.csv"
        listed.write_text(f"image,labels\n{native / 'turned.nii.gz'},{native / 'turned_labels.nii.gz'}\n")
        chosen = {"data": str(listed), "reference": str(native / "first.nii.gz")} | choices
        return prepare_scans(options(native, folder, **chosen)).kept

    def test_a_list_of_some_keeps_them(self, native, out):
        assert self.kept_of_turned(native, out) == 1

    def test_what_is_done_is_kept_and_the_picture_shows_all(self, native, prepared, out):
        before, table, sheet = self.times(out), prepared.table.read_text(), picture(out)
        again = prepare_scans(options(native, out))
        assert again.kept == 3 and again.records == prepared.records and self.times(out) == before
        assert again.table.read_text() == table
        assert np.abs(picture(out).astype(int) - sheet).max() <= 1  # of the stored images, rounded
        assert "prepared    0 of 3 scans" in again.summary() and "3 kept from before" in again.summary()

    def test_the_content_of_files_decides_not_their_place(self, native_copy, out):
        assert prepare_scans(options(native_copy, out)).kept == 3

    def test_another_input_is_prepared_again_and_the_others_are_kept(self, native_copy, prepared, out):
        scans.write_scan(native_copy / "shifted.nii.gz", scans.grid((60, 64, 56)), moved(affine_map(3, 1.0)))
        again = prepare_scans(options(native_copy, out))
        assert again.kept == 2 and again.records[2]["key"] != prepared.records[2]["key"]

    @pytest.mark.parametrize(
        "choice", [{"spacing": 1.25}, {"percentile": 99.0}, {"affine": "rigid"}, {"shape": (48,) * 3}]
    )
    def test_other_options_prepare_again(self, native, out, choice):
        assert self.kept_of_turned(native, out, **choice) == 0

    def test_another_reference_prepares_again(self, native, out):
        assert self.kept_of_turned(native, out, reference=str(native / "shifted.nii.gz")) == 0

    @pytest.mark.parametrize(
        "damage", [lambda path: path.write_bytes(path.read_bytes()[:-40]), lambda path: path.unlink()]
    )
    @pytest.mark.parametrize("names", [("images/first.nii.gz", "labels/turned.nii.gz"), ("records/turned.json",)])
    def test_a_result_that_is_not_whole_is_made_again(self, native, prepared, out, names, damage):
        for name in names:
            damage(out / name)
        assert prepare_scans(options(native, out)).kept == 3 - len(names)
        for path in prepared.folder.glob("*/*.nii.gz"):
            assert (out / path.relative_to(prepared.folder)).read_bytes() == path.read_bytes()

    def test_several_processes_write_the_same_bytes(self, native, tmp_path, prepared):
        result = prepare_scans(options(native, tmp_path / "other", jobs=2))
        for path in (*prepared.folder.glob("*/*.nii.gz"), prepared.table):
            assert (result.folder / path.relative_to(prepared.folder)).read_bytes() == path.read_bytes()
        assert [record["name"] for record in result.records] == ["first", "turned", "shifted"]


class TestNames:
    def named(self, *paths: str) -> tuple[str, ...]:
        return distinct_names([Path(path) for path in paths], "--data")

    def test_a_scan_is_called_after_its_file(self):
        assert self.named("/a/s1.nii.gz", "/b/s2.T1.MGZ") == ("s1", "s2.T1")

    def test_files_of_one_name_are_told_apart_by_their_folders(self):
        paths = "/data/01/anat/t1.nii", "/data/02/anat/T1.nii.gz", "/data/other.nii"
        assert self.named(*paths) == ("01_anat_t1", "02_anat_T1", "other")

    @pytest.mark.parametrize("second", ["/a/s1.nii", "/a/S1.nii.gz", "/a/s1.mgz"])
    def test_an_image_listed_twice_is_refused(self, second):
        with pytest.raises(InputError, match=r"--data: the results of /a/s1\.nii and .* would have the same name"):
            self.named("/a/s1.nii", second)

    def test_an_input_where_results_go_is_refused(self, native_copy, tmp_path):
        with pytest.raises(InputError, match=r"--output: the input .*first\.nii\.gz lies in the folder of the results"):
            OutputFolder(tmp_path, [Scan(native_copy.rename(tmp_path / "images") / "first.nii.gz")])

    @pytest.mark.parametrize("name", ["reference.nii.gz", "prepared.csv", ""])
    def test_so_is_a_reference_a_list_or_a_folder_that_would_be_overwritten_or_read_back(self, tmp_path, name):
        with pytest.raises(InputError, match=r"--output: the input .* lies in the folder of the results"):
            OutputFolder(tmp_path, [], [tmp_path / name])
