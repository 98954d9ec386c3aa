"""The command `prepare`: its output, contact sheet and errors, and that training reads its files."""

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from runtime.errors import ScarceError
from runtime.images.intensity import PercentileRule
from runtime.images.pictures.panels import FOLD
from runtime.workflows.preparation import PRESETS, prepare_options, prepare_scans
from runtime.workflows.preparation.output.contact_sheet import MOST, Tile, draw_contact_sheet, worst_first
from runtime.workflows.preparation.scan.alignment import Aligner
from tests.workflows.preparation import SHAPE, options, write_list
from train.data.sources import open_sources
from train.options import FitOptions


def prepare(*arguments):
    return CliRunner().invoke(cli.main, ["prepare", *map(str, arguments)])


def command(native, output) -> tuple:
    """Arguments for list.csv of a folder."""
    data = ("--data", native / "list.csv", "--output", output, "--jobs", 1)
    return *data, "--reference", "first", "--shape", ",".join(map(str, SHAPE))


class TestCommand:
    def test_it_prepares_what_training_reads(self, native, tmp_path):
        """Two volumes to train on and two to validate on; training gets exactly the numbers in the files."""
        out, names = tmp_path / "out", ("first", "turned", "shifted", "fourth")
        for kind in ("", "_labels"):
            (tmp_path / f"fourth{kind}.nii.gz").write_bytes((native / f"turned{kind}.nii.gz").read_bytes())
        places = {name: native for name in names} | {"fourth": tmp_path}
        listed = (f"{place / name}.nii.gz,{place / name}_labels.nii.gz" for name, place in places.items())
        write_list(tmp_path, "image,labels", *listed)
        result = prepare(*command(tmp_path, out), "--affine", "centre")
        assert result.exit_code == 0, result.stderr
        for word in ("prepared    4 of 4 scans", "similarity  with the reference", "contact_sheet.png"):
            assert word in result.stdout
        assert "scan 4 of 4, none left: fourth done" in result.stderr
        sources = open_sources(FitOptions(tmp_path / "run", data=str(out / "prepared.csv"), validation_volumes=2))
        assert sources.shape == SHAPE and len(sources.validation) == 2
        pair = sources.validation[0]
        for name, image, labels in (
            ("shifted", pair.moving, pair.moving_labels),
            ("fourth", pair.fixed, pair.fixed_labels),
        ):
            stored, map_ = (nib.load(out / kind / f"{name}.nii.gz").get_fdata() for kind in ("images", "labels"))
            np.testing.assert_allclose(image.numpy().reshape(SHAPE), stored, atol=1e-5)
            np.testing.assert_array_equal(labels.numpy().reshape(SHAPE), map_)

    def test_a_failure_is_a_line_and_exit_code_1(self, native, tmp_path):
        (tmp_path / "turned.nii.gz").write_bytes(b"no image")
        write_list(tmp_path, "image", str(native / "first.nii.gz"), "turned.nii.gz")
        result = prepare(*command(tmp_path, tmp_path / "out"), "--quiet")
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("Error: turned: image: ") and result.stderr.count("\n") == 1

    def test_where_nothing_but_scarcity_stood_in_the_way_it_is_75(self, native, tmp_path, monkeypatch):
        """Any other failure makes it 1: trying again would not help."""
        write_list(tmp_path, "image", *(str(native / f"{name}.nii.gz") for name in ("first", "turned")))
        scarce = iter([ScarceError("memory"), OSError(errno.ENOSPC, "disk"), ScarceError("memory"), ValueError("bad")])

        def fail(self, image, grid):
            raise next(scarce)

        monkeypatch.setattr(Aligner, "align", fail)
        codes = [prepare(*command(tmp_path, tmp_path / "out"), "--quiet").exit_code for _ in range(2)]
        assert codes == [75, 1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "--reference: is missing; give it, or --preset mindboggle or flare"),
            (("--reference", "first"), "--shape: is missing; give it, or --preset"),
            (
                ("--preset", "mindboggle", "--shape", "40,48,41"),
                "--shape: got (40, 48, 41), expected three multiples of 8",
            ),
            (("--preset", "mindboggle", "--spacing", "0"), "--spacing: got 0.0, expected mm above 0"),
            (
                ("--preset", "flare", "--window", "3,-3"),
                "--window: got 3,-3, expected two finite numbers, the lower one first",
            ),
            (("--preset", "mindboggle", "--percentile", "0"), "--percentile: got 0, expected above 0"),
            (
                ("--window", "0,9", "--percentile", "9", "--preset", "flare"),
                "--percentile: cannot be combined with --window",
            ),
            (("--preset", "mindboggle", "--affine", "some"), "'some' is not one of"),
            (("--preset", "mindboggle", "--jobs", "0"), "0 is not in the range"),
            (("--preset", "brats"), "'brats' is not one of"),
            (("--preset", "flare", "--reference", "none.nii"), "--reference: none.nii does not exist"),
            (("--preset", "flare", "--data", "none"), "--data: none holds no .nii.gz"),
            (("--preset", "flare", "--output", "list.csv"), "--output: "),
        ],
    )
    def test_bad_input_is_one_clear_line(self, native, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(native)
        result = prepare("--data", "list.csv", "--output", tmp_path / "out", *arguments)
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert result.exit_code != 0 and len(lines) == 1 and message in lines[0]

    def test_the_help_tells_the_truth_about_the_presets(self):
        text = " ".join(prepare("--help").output.split())
        for name, values in PRESETS.items():
            assert f"{name}:" in text and ",".join(map(str, values["shape"])) in text
            assert f"at {values['spacing']:g} mm" in text and values["reference"] in text
        assert "window -200,300" in text and PRESETS["flare"]["window"] == (-200, 300)

    def test_flags_count_instead_of_the_preset(self):
        chosen = prepare_options("flare", data="d", output=Path("o"), shape=(64, 64, 64), spacing=None)
        assert (chosen.shape, chosen.spacing, chosen.window) == ((64, 64, 64), 2.5, (-200.0, 300.0))
        assert prepare_options("flare", data="d", output=Path("o"), percentile=99.0).rule == PercentileRule(99.0)

    def test_an_option_that_does_not_exist_is_refused(self):
        with pytest.raises(TypeError, match="'size'"):
            prepare_options("flare", data="d", output=Path("o"), size=3)


class TestContactSheet:
    def test_failures_come_first_then_the_least_similar(self):
        tiles = [
            Tile("good", 0.9),
            Tile("bad", 0.3),
            Tile("broken", error="no"),
            Tile("blank", None),
            Tile("also", 0.3),
        ]
        assert [tile.name for tile in worst_first(tiles)] == ["broken", "blank", "also", "bad", "good"]

    def test_no_more_than_can_be_looked_at(self):
        tiles = [Tile(f"{n:04}", n / 1000) for n in range(MOST + 5)]
        assert worst_first(reversed(tiles)) == tiles[:MOST]

    def test_it_shows_every_scan_with_the_outline_and_failures_in_red(self, native, tmp_path):
        (tmp_path / "cut.nii.gz").write_bytes(b"no image")
        write_list(tmp_path, "image", str(native / "first.nii.gz"), "cut.nii.gz")
        result = prepare_scans(options(tmp_path, tmp_path / "out"))
        with Image.open(result.folder / "contact_sheet.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
        assert (pixels == FOLD).all(axis=1).any()
        towards = pixels[:, 1] - pixels[:, 0]  # the outline is the only thing that is greener than red
        assert np.count_nonzero(towards > 60) > 300

    def test_a_list_of_nothing_but_failures_has_a_picture_too(self):
        assert draw_contact_sheet([Tile("a", error="x " * 400)], "title", 1).size[0] > 300
