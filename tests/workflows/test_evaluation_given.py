"""Other inputs of `evaluate`: transforms of other tools in their conventions, landmarks, numbers."""

import gzip
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tests import scans
from tests.workflows.evaluated_pair import (
    FIXED,
    LABELS,
    LANDMARKS,
    POINTS,
    QUICK,
    SCANS,
    SHIFT,
    of_pair,
    runner,
    scores,
    write_list,
    write_pair,
)

MOVING = scans.grid((42, 40, 44), axes="LAS")  # FSL counts this one's voxels from the other side
PERFECT = pytest.approx(0, abs=1e-4)


@pytest.fixture
def pair(tmp_path) -> SimpleNamespace:
    return write_pair(tmp_path)


@pytest.fixture
def run(engine_dir):
    return runner(engine_dir)


def write_field(path, displacement):
    """Write a constant displacement to a file that does not state its convention."""
    nib.save(nib.Nifti1Image(np.full((*FIXED.shape, 3), displacement, np.float32), FIXED.affine), path)
    return path


def scaled_voxels(grid) -> np.ndarray:
    """Return the map from RAS mm to FSL's mm on a 1 mm grid: voxels, counted from the right on right-handed axes."""
    flip = np.eye(4)
    if np.linalg.det(grid.affine) > 0:
        flip[0] = -1, 0, 0, grid.shape[0] - 1
    return flip @ np.linalg.inv(grid.affine)


class TestConventions:
    """The true shift as other tools write it, without a stated convention: perfect once the convention is given."""

    @pytest.mark.parametrize("inverse", [False, True])
    def test_a_matrix_of_flirt(self, tmp_path, run, inverse):
        """The matrix of `flirt -in moving -ref fixed` (moving to fixed), or that of the opposite run, inverted."""
        pair = write_pair(tmp_path, MOVING)
        truth = np.loadtxt(pair.shift)
        matrix = scaled_voxels(MOVING) @ truth @ np.linalg.inv(scaled_voxels(FIXED))
        np.savetxt(tmp_path / "flirt.mat", matrix if inverse else np.linalg.inv(matrix))
        chain = f"{tmp_path / 'flirt.mat'}{',inverse' if inverse else ''}"
        run(*of_pair(pair, *SCANS, *LABELS, *POINTS), "-t", chain, "--convention", "fsl", *QUICK)
        found = scores(pair.output)["transform"]
        assert (found["dice"], found["landmark_error_mm"]) == (1, PERFECT)

    @pytest.mark.parametrize("convention, signs", [("learn2reg", (1, 1, 1)), ("fsl", (-1, 1, 1))])
    def test_an_unmarked_field(self, pair, run, convention, signs):
        field = write_field(pair.fixed.parent / "field.nii.gz", SHIFT * signs)
        line = f"one,{pair.fixed},{pair.moving},{pair.fixed_labels},{pair.moving_labels},{field},{convention}"
        listed = write_list(pair, line, columns="transform,convention")
        run("--pairs", listed, "--output", pair.output, *QUICK)
        assert scores(pair.output)["transform"]["dice"] == 1

    def test_doubts_about_its_header_are_told(self, pair, run):
        field = write_field(pair.fixed.parent / "field.nii.gz", SHIFT)
        damaged = bytearray(gzip.decompress(field.read_bytes()))
        damaged[123] = 7  # xyzt_units: no length has this code
        field.write_bytes(gzip.compress(bytes(damaged)))
        done = run(*of_pair(pair, *SCANS, *LABELS), "-t", field, "--convention", "learn2reg", *QUICK)
        lines = [line for line in done.stderr.splitlines() if line.startswith("warning") and "field.nii.gz" in line]
        assert len(lines) == 1 and "unit" in lines[0], done.stderr
        assert scores(pair.output)["transform"]["dice"] == 1

    def test_without_it_the_message_names_option_and_column_and_then_only_the_transform_is_scored_anew(self, pair, run):
        field = write_field(pair.fixed.parent / "field.nii.gz", SHIFT)
        files = [*of_pair(pair, *SCANS, *LABELS), "-t", field, *QUICK]
        done = run(*files, code=1)
        assert done.stderr.splitlines()[-1].endswith("(--convention, or the column convention of --pairs)")
        first = scores(pair.output)
        run(*files, "--convention", "learn2reg")
        found = scores(pair.output)
        assert found["transform"]["dice"] == 1 and found["1,1,1,1"] == first["1,1,1,1"]
        run(*files, "--convention", "fsl")
        assert scores(pair.output)["transform"]["dice"] < 0.9

    def test_it_is_for_transforms(self, pair, run):
        done = run(*of_pair(pair, *SCANS), "--convention", "fsl", code=2)
        assert "--convention is for --transform" in done.stderr

    def test_of_a_list_it_is_a_column(self, pair, run):
        listed = write_list(pair, f"one,{pair.fixed},{pair.moving},,,", columns="transform")
        done = run("--pairs", listed, "--output", pair.output, "--convention", "fsl", code=2)
        assert "conventions are columns of the CSV" in done.stderr

    def test_one_that_does_not_exist(self, pair, run):
        listed = write_list(pair, f"one,{pair.fixed},{pair.moving},,,,flirt", columns="transform,convention")
        done = run("--pairs", listed, "--output", pair.output, code=1)
        assert "Error: pair one: convention is 'flirt', expected one of auto, itk, " in done.stderr


class TestLandmarks:
    def test_columns_that_say_their_frame_keep_it(self, pair, run):
        """Fixed points in r,a,s; moving ones in x,y,z, whose frame only --points-in gives."""
        points = (LANDMARKS + SHIFT) * (-1, -1, 1)
        np.savetxt(pair.moving_landmarks, points, delimiter=",", header="x,y,z", comments="")
        run(*of_pair(pair, *SCANS, *POINTS), "-t", pair.shift, "--points-in", "lps", *QUICK)
        assert scores(pair.output)["transform"]["landmark_error_mm"] == PERFECT

    @pytest.mark.parametrize("told", [(), ("--points-in", "voxels")], ids=["", "points-in"])
    def test_slicers_files_say_their_frame(self, pair, run, told):
        """Fixed points in LPS in a .mrk.json, moving ones in RAS in a .fcsv; --points-in is for columns x,y,z only."""
        pair.fixed_landmarks = pair.fixed.parent / "fixed.mrk.json"
        points = [{"position": list(point)} for point in (LANDMARKS * (-1, -1, 1)).tolist()]
        markups = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}
        pair.fixed_landmarks.write_text(json.dumps({"markups": [markups]}, indent=4))
        pair.moving_landmarks = pair.fixed.parent / "moving.fcsv"
        rows = "".join(f"n,{x},{y},{z},0,0,0,1,1,1,0,F,,\n" for x, y, z in (LANDMARKS + SHIFT).tolist())
        head = "# Markups fiducial file version = 4.6\n# CoordinateSystem = RAS\n"
        pair.moving_landmarks.write_text(f"{head}# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc\n{rows}")
        run(*of_pair(pair, *SCANS, *POINTS), "-t", pair.shift, *told, *QUICK)
        found, length = scores(pair.output), float(np.linalg.norm(SHIFT))
        assert found["transform"]["landmark_error_mm"] == PERFECT
        assert found["before"]["landmarks_mm"] == pytest.approx([length] * 3)

    def test_columns_that_do_not_say_it_need_to_be_told(self, pair, run):
        np.savetxt(pair.moving_landmarks, LANDMARKS, delimiter=",", header="x,y,z", comments="")
        done = run(*of_pair(pair, *SCANS, *POINTS), *QUICK, code=1)
        assert "name their frame: --points-in" in done.stderr


class TestWhatNothingUses:
    @pytest.mark.parametrize("times", ["5-3", "1,7-6"])
    def test_an_empty_range(self, pair, run, times):
        done = run(*of_pair(pair, *SCANS), "--schedule", "t,1,1,1", "--times", times, code=2)
        assert f"got '{times}', but {times[-3:]} is empty; write {times[-1]}-{times[-3]}" in done.stderr

    @pytest.mark.parametrize(
        "option, value, message",
        [("--label-ids", "10", "no pair has label maps"), ("--points-in", "ras", "no pair has landmarks")],
    )
    def test_what_no_pair_has(self, pair, run, option, value, message):
        done = run(*of_pair(pair, *SCANS), option, value, code=1)
        assert f"Error: {option}: {message}; leave it out" in done.stderr
