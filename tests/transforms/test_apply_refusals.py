"""Errors in commands on transforms: one line, and nothing is written."""

import errno
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime.images.formats.nifti_writer import write_nifti, write_volume
from tests import scans
from tests.known_pair import COMMANDS, make_pair, refused, run


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def here(tmp_path, pair, monkeypatch):
    """A folder with files that have one fault each, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    image, shape = scans.scan(pair.scan_grid), pair.scan_grid.shape
    (tmp_path / "text.nii.gz").write_text("no image")
    (tmp_path / "text.txt").write_text("no transform")
    for name in ("empty.txt", "empty.mat"):
        (tmp_path / name).write_text("")
    (tmp_path / "three.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n")
    (tmp_path / "flat.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n")
    (tmp_path / "nan.txt").write_text("1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (tmp_path / "identity.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (tmp_path / "cut.nii.gz").write_bytes(pair.warp.read_bytes()[:-400])
    holes = image.copy()
    holes[3, 4, 5] = np.nan
    write_volume("holes.nii.gz", holes, pair.scan_grid)
    write_volume("soft.nii.gz", image / 1000, pair.scan_grid)
    write_volume("slice.nii.gz", image[:, :, :1], pair.scan_grid.crop((0, 0, 0), (*shape[:2], 1)))
    write_nifti("vector.nii.gz", np.zeros((*shape, 1, 3), np.float32), pair.scan_grid, intent=1007)
    bare = np.zeros((*pair.grid.shape, 3), np.float32)
    write_volume("bare.nii.gz", bare, pair.grid)
    bare[2, 2, 2] = np.inf
    write_nifti("infinite.nii.gz", bare[:, :, :, None], pair.grid, intent=1007)
    singular = nib.Nifti1Image(image, None)
    singular.header["sform_code"], singular.header["srow_x"], singular.header["srow_y"] = 1, [1, 0, 0, 0], [1, 0, 0, 0]
    nib.save(singular, "singular.nii.gz")
    (tmp_path / "points.csv").write_text("x,y,z\n1,2,3\n")
    before = {path.name for path in tmp_path.iterdir()}
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} == before


IMAGE, WARP, OUT = ("--image", "SCAN"), ("-t", "WARP"), ("--output", "out.nii.gz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*WARP, *OUT), "give one of --image, --labels and --points"),
        ((*IMAGE, "--labels", "SCAN", *WARP, *OUT), "give one of --image, --labels and --points"),
        ((*IMAGE, *WARP), "Missing option '--output'"),
        ((*IMAGE, *OUT), "--reference: is needed, since there is no -t"),
        ((*IMAGE, "-t", "identity.txt", *OUT), "--reference: is needed, since identity.txt does not state"),
        ((*IMAGE, *WARP, "--output", "out.png"), "--output: got out.png, expected a name that ends in"),
        ((*IMAGE, *WARP, "--output", "nowhere/out.nii"), "--output: cannot write into nowhere (No such file"),
        ((*IMAGE, *WARP, "--output", "WARP", "--overwrite"), "--output: would replace the input"),
        ((*IMAGE, *WARP, "--output", "SCAN", "--overwrite"), "--output: would replace the input"),
        ((*IMAGE, *WARP, *OUT, "--interpolation", "smooth"), "got smooth, expected linear or cubic or nearest for"),
        (("--labels", "SCAN", *WARP, *OUT, "--interpolation", "cubic"), "got cubic, expected nearest or smooth"),
        (("--labels", "SCAN", *WARP, *OUT, "--outside", "1"), "--outside is for --image"),
        (
            (*IMAGE, *WARP, *OUT, "--outside", "1e300"),
            "--outside: got 1e+300, expected a number in the range of single precision",
        ),
        ((*IMAGE, *WARP, *OUT, "--points-in", "ras"), "--points-in is for --points"),
        ((*IMAGE, *WARP, *OUT, "--scan", "SCAN"), "--scan is for --points"),
        (("--points", "points.csv", *WARP, *OUT), "--output: got out.nii.gz, expected a name that ends in"),
        (("--image", "gone.nii.gz", *WARP, *OUT), "--image: gone.nii.gz does not exist"),
        (("--image", "text.nii.gz", *WARP, *OUT), "--image: text.nii.gz cannot be read"),
        (("--image", "holes.nii.gz", *WARP, *OUT), "--image: holes.nii.gz has 1 voxels that are NaN; set them"),
        (("--image", "slice.nii.gz", *WARP, *OUT), "--image: slice.nii.gz is a slice of shape"),
        (("--image", "vector.nii.gz", *WARP, *OUT), "holds vectors, expected a scalar image"),
        (("--labels", "soft.nii.gz", *WARP, *OUT), "voxels that are not whole numbers, expected a label map"),
        ((*IMAGE, *WARP, *OUT, "--reference", "singular.nii.gz"), "singular.nii.gz: voxel-to-world affine"),
        ((*IMAGE, *WARP, *OUT, "--reference", "gone.nii"), "--reference: gone.nii does not exist"),
        ((*IMAGE, "-t", "gone.nii.gz", *OUT), "-t: gone.nii.gz does not exist"),
        ((*IMAGE, "-t", "text.nii.gz", *OUT), "-t: text.nii.gz cannot be read"),
        ((*IMAGE, "-t", "cut.nii.gz", *OUT), "-t: cut.nii.gz cannot be read"),
        ((*IMAGE, "-t", "empty.txt", *OUT), "-t: empty.txt: got shape (0, 0), expected a 4x4 matrix"),
        ((*IMAGE, "-t", "empty.mat", *OUT), "-t: empty.mat: got shape (0, 0), expected a 4x4 matrix"),
        ((*IMAGE, "-t", "text.txt", *OUT), "-t: text.txt is not a text file of four rows of four numbers"),
        ((*IMAGE, "-t", "three.txt", *OUT), "-t: three.txt: got shape (3, 4), expected a 4x4 matrix"),
        ((*IMAGE, "-t", "flat.txt", *OUT), "-t: flat.txt: is singular"),
        ((*IMAGE, "-t", "nan.txt", *OUT), "-t: nan.txt: has entries that are not finite"),
        ((*IMAGE, "-t", "SCAN", *OUT), "expected a displacement field"),
        ((*IMAGE, "-t", "infinite.nii.gz", *OUT), "-t: infinite.nii.gz: holds numbers that are NaN or infinite"),
        ((*IMAGE, "-t", "bare.nii.gz", *OUT), "does not state its convention; name it: fsl or learn2reg"),
        (
            (*IMAGE, "-t", "identity.txt", *OUT, "--convention", "fsl"),
            "is a FLIRT matrix, which needs the grids of both",
        ),
        ((*IMAGE, *WARP, *OUT, "--convention", "ants"), "'ants' is not one of"),
    ],
)
def test_apply(pair, here, arguments, message):
    files = {"SCAN": pair.scan, "WARP": pair.warp}
    before = {path: path.read_bytes() for path in files.values()}
    assert message in refused("apply", *(files.get(word, word) for word in arguments))
    assert before == {path: path.read_bytes() for path in files.values()}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("compose", OUT, "give a transform: -t FILE"),
        ("invert", OUT, "give a transform: -t FILE"),
        ("jacobian", OUT, "give a transform: -t FILE"),
        ("convert", (*WARP, *WARP, *OUT), "give one -t; to join several into one file, use compose"),
        ("convert", (*WARP, "--to", "h5", *OUT), "--output: got out.nii.gz, expected a name that ends in"),
        ("convert", (*WARP, "--to", "nifti", *OUT), "'nifti' is not one of"),
        ("jacobian", (*WARP, "--output", "out.h5"), "--output: got out.h5, expected a name that ends in"),
        (
            "invert",
            ("-t", "identity.txt", *OUT),
            "--moving: is needed, since identity.txt does not state where it ends",
        ),
        ("invert", ("-t", "identity.txt", "--to", "freesurfer", "--output", "out.lta"), "--moving: is needed"),
        ("convert", ("-t", "identity.txt", "--to", "freesurfer", "--output", "out.lta"), "--reference: is needed"),
        (
            "convert",
            ("-t", "identity.txt", "--reference", "SCAN", "--to", "fsl", "--output", "out.mat"),
            "--moving: is needed, since identity.txt does not state where it ends",
        ),
        (
            "invert",
            ("-t", "identity.txt", "--moving", "SCAN", "--to", "fsl", "--output", "out.mat"),
            "--fixed: is needed, since identity.txt does not state where it starts",
        ),
    ],
)
def test_the_others(pair, here, command, arguments, message):
    files = {"SCAN": pair.scan, "WARP": pair.warp}
    assert message in refused(command, *(files.get(word, word) for word in arguments))


@pytest.mark.parametrize("option", ["--image", "-t", "--reference", "--output"])
def test_a_name_too_long_for_the_system_is_one_line(pair, here, option):
    words = {"--image": pair.scan, "-t": pair.warp, "--output": "out.nii.gz"} | {option: "x" * 300 + ".nii.gz"}
    line = refused("apply", *(word for pair in words.items() for word in pair))
    assert line.startswith(f"Error: {option}: ") and ("x" * 300 in line or "File name too long" in line)


def test_a_result_that_does_not_fit_into_memory(pair, here, monkeypatch):
    monkeypatch.setattr("runtime.host.machine.available_bytes", lambda: 1 << 20)
    line = refused("apply", "--image", pair.scan, "-t", pair.warp, "--output", "out.nii.gz")
    assert "--reference: a result of 1 x 40 x 44 x 36 voxels needs about 0.0 GiB of memory" in line


@pytest.mark.parametrize("command", ["apply", "convert", "invert", "jacobian", "points"])
def test_a_disk_that_is_full(pair, here, monkeypatch, command):
    """Whatever is written, the message names the option, the file and what to do."""

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    out = "out.csv" if command == "points" else "out.nii.gz"
    given = {"apply": ("--image", pair.scan), "points": ("--points", "points.csv", "--points-in", "ras")}
    line = refused(
        "apply" if command == "points" else command, *given.get(command, ()), "-t", pair.warp, "--output", out
    )
    assert line == f"Error: --output: writing {out} failed (No space left on device); free disk space or choose another"


@pytest.mark.parametrize("command", sorted(COMMANDS.commands))
def test_help_documents_every_option(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    for parameter in COMMANDS.commands[command].params:
        assert parameter.opts[0] in result.output
