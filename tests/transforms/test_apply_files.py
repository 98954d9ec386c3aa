"""`compose`, `invert`, `convert`, `jacobian`: the written file is the requested map."""

import nibabel as nib
import numpy as np
import pytest

from runtime.commands import transforms as commands
from runtime.geometry.transform import AffineTransform
from runtime.images.volume import read_series
from runtime.transforms import read_transform, write_transform
from runtime.transforms.formats import WRITERS
from tests import scans
from tests.known_pair import (
    SHIFT,
    TURN,
    bend,
    done,
    field,
    make_pair,
    refused,
    shift,
    write_affine,
    write_plain_affine,
    write_warp,
)

INSIDE = np.array([[2.0, -10.5, 18.25], [7.0, -14.0, 22.0], [0.0, -9.0, 24.5]])  # RAS mm, far from every border


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    fine = scans.grid((22, 24, 20), (0.9, 1.0, 1.1), rotation=scans.OBLIQUE, axes="LIA")
    return make_pair(tmp_path_factory.mktemp("bent"), bend, scans.grid((22, 26, 20), axes="LPS"), fine)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A field that reaches so far beyond the scan that its inverse is known everywhere in the scan."""
    grid, small = scans.grid((70, 76, 70), axes="PIR"), scans.grid((30, 28, 26), (1.2, 1.0, 1.1))
    return make_pair(tmp_path_factory.mktemp("wide"), bend, grid, small)


def points_of(path, points=INSIDE, **grids):
    return read_transform(path, **grids).transform.points(points)


@pytest.mark.parametrize("convention", ["itk", "freesurfer", "fsl", "learn2reg", "h5"])
def test_convert_there_and_back_is_the_same_map(bent, tmp_path, convention):
    there, back = tmp_path / ("there" + commands.SUFFIXES[convention][0]), tmp_path / "back.nii.gz"
    printed = done("convert", "-t", bent.warp, "--to", convention, "--output", there)
    assert f"wrote {there}: {convention}; read back, it differs by" in printed
    done("convert", "-t", there, "--output", back)
    assert points_of(there) == pytest.approx(points_of(bent.warp), abs=1e-3)
    assert nib.load(back).get_fdata() == pytest.approx(nib.load(bent.warp).get_fdata(), abs=1e-4)


def test_one_convention_is_named_for_files_that_do_not_say_theirs(bent, tmp_path):
    """A chain of FSL's warp and an affine of this project, which resembles FLIRT's but states that it is not one."""
    affine, warp = tmp_path / "affine.txt", tmp_path / "fsl.nii.gz"
    write_warp(affine, AffineTransform(TURN), bent.reference, bent.scan, "ras")
    done("convert", "-t", bent.warp, "--to", "fsl", "--output", warp)
    links = ("-t", warp, "-t", f"{affine},inverse", "-t", affine)
    done("compose", *links, "--convention", "fsl", "--output", tmp_path / "all.nii.gz")
    assert points_of(tmp_path / "all.nii.gz") == pytest.approx(points_of(bent.warp), abs=1e-3)


def test_both_sides_stay_known(bent, tmp_path):
    out = tmp_path / "warp.h5"
    done("convert", "-t", bent.warp, "--to", "h5", "--output", out)
    before, after = read_transform(bent.warp), read_transform(out)
    for name in ("start", "end"):
        one, other = getattr(before, name), getattr(after, name)
        assert (one.sha256, one.name) == (other.sha256, other.name) and one.grid.close(other.grid)


def test_an_affine_is_written_as_one(bent, tmp_path):
    """In every kind of file that holds affines, without loss; the grids are known from the first one on."""
    current = write_warp(tmp_path / "affine.txt", AffineTransform(TURN), bent.reference, bent.scan, "ras")
    kinds = [("itk", ".txt"), ("itk", ".mat"), ("h5", ".h5"), ("fsl", ".mat"), ("ras", ".txt")]
    for number, (convention, suffix) in enumerate(kinds):
        out = tmp_path / f"{number}{suffix}"
        known = ("--reference", bent.reference, "--fixed", bent.reference, "--moving", bent.scan)
        reading = ("--convention", "fsl") if convention == "ras" else ()
        done("convert", "-t", current, "--to", convention, "--output", out, *known, *reading)
        current = out
    assert np.loadtxt(current) == pytest.approx(TURN, abs=1e-9)


def test_compose_is_the_chain(bent, tmp_path):
    """Points through the file are points through one link after the other, on the grid of the first."""
    turn = write_plain_affine(tmp_path / "turn.txt", TURN)
    out = tmp_path / "both.nii.gz"
    done("compose", "-t", bent.warp, "-t", turn, "--output", out)
    voxels = np.random.default_rng(0).integers(0, bent.grid.shape, (50, 3))
    places = bent.grid.to_physical(voxels)
    expected = points_of(bent.warp, places) @ TURN[:3, :3].T + TURN[:3, 3]
    assert points_of(out, places) == pytest.approx(expected, abs=1e-3)
    assert read_transform(out).start.grid.close(bent.grid)


def test_compose_on_any_grid(bent, tmp_path):
    place = scans.grid((20, 22, 18), (2, 1.5, 1.8), rotation=scans.OBLIQUE)
    reference, out = scans.write_scan(tmp_path / "place.nii.gz", place), tmp_path / "warp.h5"
    done("compose", "-t", bent.warp, "--reference", reference, "--to", "h5", "--output", out)
    assert read_transform(out).start.grid.close(place)
    assert points_of(out) == pytest.approx(bend(INSIDE), abs=0.05)


def test_affines_compose_to_their_product(tmp_path, bent):
    shifts = np.eye(4)
    shifts[:3, 3] = SHIFT
    links = [write_plain_affine(tmp_path / f"{n}.txt", matrix) for n, matrix in enumerate((shifts, TURN))]
    out = tmp_path / "product.txt"
    links = ("-t", links[0], "-t", f"{links[1]},inverse")
    done("compose", *links, "--reference", bent.reference, "--to", "ras", "--output", out)
    assert np.loadtxt(out) == pytest.approx(np.linalg.inv(TURN) @ shifts, abs=1e-12)


@pytest.mark.parametrize("command", ["convert", "compose", "invert"])
@pytest.mark.parametrize(("convention", "suffix"), [("itk", ".mat"), ("itk", ".tfm"), ("ras", ".txt")])
def test_an_affine_that_becomes_an_affine_needs_no_image(tmp_path, command, convention, suffix):
    """Files with a map from mm to mm contain no grids."""
    ants = tmp_path / "0GenericAffine.mat"
    write_transform(ants, AffineTransform(TURN), "itk", None, None)
    done(command, "-t", ants, "--to", convention, "--output", tmp_path / f"out{suffix}")
    found = read_transform(tmp_path / f"out{suffix}")
    expected = np.linalg.inv(TURN) if command == "invert" else TURN
    assert found.transform.matrix == pytest.approx(expected, abs=1e-12)


def test_an_affine_is_inverted_on_the_reference_that_is_given(bent, tmp_path):
    ants = write_affine(tmp_path / "affine.mat", TURN, bent.reference, bent.scan)
    for name in ("out.mat", "out.nii.gz"):
        done("invert", "-t", ants, "--reference", bent.scan, "--output", tmp_path / name)
        there = points_of(tmp_path / name) @ TURN[:3, :3].T + TURN[:3, 3]
        assert there == pytest.approx(INSIDE, abs=1e-3)


def test_invert_gives_the_inverse_and_says_how_exact_it_is(wide, tmp_path):
    out = tmp_path / "inverse.nii.gz"
    printed = done("invert", "-t", wide.warp, "--output", out)
    assert "inverse     residual " in printed and "unresolved  0.0000 % of the voxels" in printed
    written = read_transform(out)
    assert written.start.grid.close(wide.scan_grid) and written.end.grid.close(wide.grid)
    assert bend(written.transform.points(INSIDE)) == pytest.approx(INSIDE, abs=0.05)


def test_invert_twice_is_the_transform(wide, tmp_path):
    first, second = tmp_path / "first.nii.gz", tmp_path / "second.nii.gz"
    done("invert", "-t", wide.warp, "--reference", wide.reference, "--output", first)
    done("invert", "-t", first, "--reference", wide.reference, "--output", second)
    assert points_of(second) == pytest.approx(points_of(wide.warp), abs=0.02)


def test_the_inverse_of_a_chain_and_of_an_affine(wide, tmp_path):
    turn = write_plain_affine(tmp_path / "turn.txt", TURN)
    both, alone = tmp_path / "both.nii.gz", tmp_path / "alone.txt"
    done("invert", "-t", wide.warp, "-t", turn, "--moving", wide.scan, "--output", both)
    there = bend(points_of(both)) @ TURN[:3, :3].T + TURN[:3, 3]
    assert there == pytest.approx(INSIDE, abs=0.05)
    sides = ("--fixed", wide.reference, "--moving", wide.scan)
    done("invert", "-t", turn, *sides, "--to", "ras", "--output", alone)
    assert np.loadtxt(alone) == pytest.approx(np.linalg.inv(TURN), abs=1e-12)


def test_jacobian_of_an_affine_is_its_determinant(bent, tmp_path):
    affine, out = write_affine(tmp_path / "affine.nii.gz", TURN, bent.reference, bent.scan), tmp_path / "out.nii.gz"
    determinant = np.linalg.det(TURN[:3, :3])
    printed = done("jacobian", "-t", affine, "--output", out)
    assert read_series(out, "out").data == pytest.approx(determinant, abs=1e-3)
    assert f"times {determinant:.3f} to {determinant:.3f}" in printed
    assert "folded      0.0000 %" in printed and "SDlogJ      0.0000" in printed
    done("jacobian", "-t", affine, "--output", out, "--log", "--overwrite")
    assert read_series(out, "out").data == pytest.approx(np.log(determinant), abs=1e-3)


def test_jacobian_of_a_shift_is_1_and_of_folds_below_0(tmp_path):
    still = make_pair(tmp_path, shift)
    out = tmp_path / "out.nii.gz"
    done("jacobian", "-t", still.warp, "--output", out)
    assert read_series(out, "out").data == pytest.approx(1, abs=1e-3)
    folds = field(still.grid, lambda points: points + [3, 0, 0] * np.sin(points[..., :1]))
    warp = write_warp(tmp_path / "folds.nii.gz", folds, still.reference, still.scan)
    printed = done("jacobian", "-t", warp, "--output", out, "--overwrite")
    found = read_series(out, "out").data
    assert found.min() < 0 and f"folded      {100 * np.mean(found <= 0):.4f} %" in printed


def test_names_that_may_be_written_are_those_of_the_table():
    """`commands.SUFFIXES` is there so that --help needs no NumPy."""
    pairs = {(convention, suffix) for convention, suffixes in commands.SUFFIXES.items() for suffix in suffixes}
    assert pairs == set(WRITERS)


def test_a_field_does_not_go_into_a_file_for_affines(bent, tmp_path):
    line = refused("convert", "-t", bent.warp, "--to", "ras", "--output", tmp_path / "warp.txt")
    assert "is a file for affine transforms" in line and not (tmp_path / "warp.txt").exists()


def test_nothing_is_left_of_a_file_that_is_not_read_back_as_it_was_written(bent, tmp_path, monkeypatch):
    from runtime.transforms.conventions import nifti_field

    whole = nifti_field.write_field

    def wrong(path, displacement, *others):
        whole(path, displacement + np.float32(0.1), *others)

    monkeypatch.setattr(nifti_field, "write_field", wrong)
    out = tmp_path / "out.nii.gz"
    line = refused("convert", "-t", bent.warp, "--output", out)
    assert line.startswith(f"Error: {out}: read back, it differs by 0.17") and line.endswith("; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_has_to_be_told_where_it_ends(bent, tmp_path):
    bare = nib.load(bent.warp)
    bare.header.extensions.clear()
    nib.save(bare, tmp_path / "bare.nii.gz")
    arguments = ("convert", "-t", tmp_path / "bare.nii.gz", "--to", "fsl", "--output", tmp_path / "out.nii.gz")
    assert "--moving: is needed" in refused(*arguments)
    done(*arguments, "--moving", bent.scan)
    assert points_of(tmp_path / "out.nii.gz") == pytest.approx(points_of(bent.warp), abs=1e-3)
