"""A transform in the wrong direction is rejected, and the command in the message is the intended one."""

import shlex

import numpy as np
import pytest

from runtime.geometry.transform import AffineTransform
from runtime.images.volume import read_series, read_volume
from tests import scans
from tests.known_pair import (
    COMMANDS,
    TURN,
    bend,
    done,
    field,
    make_pair,
    places,
    refused,
    run,
    shift,
    write_series,
    write_warp,
)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Reference and scan on one grid: only their hashes tell them apart."""
    grid = scans.grid((40, 44, 36))
    return make_pair(tmp_path_factory.mktemp("one grid"), shift, grid, grid)


def advice(line: str) -> list[str]:
    """The words of the command that a message recommends, below ``python cli.py``."""
    python, script, *words = shlex.split(line.partition("; use: ")[2])
    assert (python, script.rpartition("/")[2]) == ("python", "cli.py")
    return words


def follow(line: str) -> None:
    """Runs the recommended command to the letter."""
    words = advice(line)
    assert words[0] in COMMANDS.commands
    done(*words)


@pytest.mark.parametrize("pair", ["shifted", "twins"])
@pytest.mark.parametrize("named", [False, True])
def test_the_wrong_way_is_refused_and_the_advice_works(request, tmp_path, pair, named):
    """The reference image is given as the scan: with the inverse it is mapped to the scan's space."""
    pair, out = request.getfixturevalue(pair), tmp_path / "out here.nii.gz"
    reference = ("--reference", pair.scan) if named else ()
    arguments = ("--image", pair.reference, "-t", pair.warp, *reference, "--output", out)
    line = refused("apply", *arguments, "--interpolation", "cubic", "--outside", 0)
    assert "reference.nii.gz to scan.nii.gz" in line and not out.exists()
    follow(line)
    found = read_volume(out, "out")
    assert found.grid.close(pair.scan_grid)
    inner = (slice(8, -8),) * 3
    assert found.data[inner] == pytest.approx(scans.scan(pair.scan_grid)[inner], abs=2)


def test_the_inverse_where_the_warp_itself_is_right(shifted, tmp_path):
    arguments = ("--image", shifted.scan, "-t", f"{shifted.warp},inverse", "--reference", shifted.reference)
    line = refused("apply", *arguments, "--output", tmp_path / "out.nii.gz")
    assert advice(line)[advice(line).index("-t") + 1] == str(shifted.warp)
    follow(line)
    assert read_volume(tmp_path / "out.nii.gz", "out").data == pytest.approx(shifted.truth(), abs=1)


def test_label_maps_are_placed_by_their_grid(shifted, tmp_path):
    """They have another hash than the scan; the grid is the scan's."""
    labels = scans.write_labels(tmp_path / "labels.nii.gz", shifted.grid, shift)
    line = refused("apply", "--labels", labels, "-t", shifted.warp, "--output", tmp_path / "out.nii.gz", "--quiet")
    follow(line)
    assert (tmp_path / "out.nii.gz").is_file() and "--quiet" in advice(line)


def test_points_are_placed_by_the_scan_and_the_reference_that_are_named(shifted, tmp_path):
    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    points.write_text("i,j,k\n20,20,20\n")
    arguments = ("--points", points, "-t", shifted.warp, "--output", out)
    line = refused("apply", *arguments, "--scan", shifted.reference, "--reference", shifted.scan)
    follow(line)
    expected = shifted.scan_grid.to_voxels(shift(shifted.grid.to_physical(np.full((1, 3), 20.0))))
    assert np.loadtxt(out, delimiter=",", skiprows=1) == pytest.approx(expected[0], abs=1e-3)


def test_one_link_of_a_chain_that_is_the_wrong_way_round(shifted, tmp_path):
    third = scans.write_scan(tmp_path / "third.nii.gz", scans.grid((50, 50, 50), (1.1, 1.0, 0.9)))
    second = write_warp(tmp_path / "second.nii.gz", AffineTransform(TURN), shifted.scan, third)
    arguments = ("--image", third, "-t", f"{shifted.warp},inverse", "-t", second, "--output", tmp_path / "out.nii.gz")
    line = refused("apply", *arguments)
    assert [word for word in advice(line) if str(shifted.warp) in word] == [str(shifted.warp)]
    follow(line)


@pytest.mark.parametrize("command", ["compose", "jacobian"])
def test_other_commands_on_chains_refuse_it_too(shifted, tmp_path, command):
    arguments = ("-t", shifted.warp, "--reference", shifted.scan, "--output", tmp_path / "out.nii.gz")
    follow(refused(command, *arguments))
    assert (tmp_path / "out.nii.gz").is_file()


def test_what_was_made_of_a_scan_passes(shifted, twins, tmp_path):
    """A smoothed or masked scan has the scan's grid but another hash."""
    for pair in (shifted, twins):
        made = scans.write_scan(tmp_path / f"{pair is twins}.nii.gz", pair.scan_grid, lambda points: points + 0.25)
        done("apply", "--image", made, "-t", pair.warp, "--output", tmp_path / f"out {pair is twins}.nii.gz")


@pytest.mark.parametrize("kind", ["labels", "series", "made of it"])
def test_what_lies_in_the_scan_may_be_wanted_on_the_scans_own_grid(shifted, tmp_path, kind):
    """The scan matches the end with certainty; the reference is only a grid."""
    out, path = tmp_path / "out.nii.gz", tmp_path / "carried.nii.gz"
    if kind == "labels":
        scans.write_labels(path, shifted.scan_grid)
    elif kind == "series":
        write_series(path, shifted.scan_grid, [lambda points: points] * 2)
    else:
        scans.write_scan(path, shifted.scan_grid, lambda points: points + 0.25)
    option = "--labels" if kind == "labels" else "--image"
    done("apply", option, path, "-t", shifted.warp, "--reference", shifted.scan, "--output", out)
    assert read_series(out, "out").grid.close(shifted.scan_grid)


def test_a_scan_that_was_resampled_onto_the_fixed_grid_stays_the_scan(shifted, tmp_path):
    """It is not the fixed image; without a reference, the grid alone proves nothing."""
    resampled = scans.write_scan(tmp_path / "resampled.nii.gz", shifted.grid)
    done("apply", "--image", resampled, "-t", shifted.warp, "--output", tmp_path / "out.nii.gz")
    found = read_volume(tmp_path / "out.nii.gz", "out").data
    inner = (slice(8, -8),) * 3
    assert found[inner] == pytest.approx(shifted.truth()[inner], abs=2)


def test_files_that_say_nothing_of_their_sides_are_believed(shifted, tmp_path):
    np.savetxt(tmp_path / "affine.txt", TURN)
    for image, reference in ((shifted.scan, shifted.reference), (shifted.reference, shifted.scan)):
        out = tmp_path / image.name
        done("apply", "--image", image, "-t", tmp_path / "affine.txt", "--reference", reference, "--output", out)


def test_a_grid_that_is_neither_proves_nothing(tmp_path):
    pair = make_pair(tmp_path, bend)
    place = scans.write_scan(tmp_path / "place.nii.gz", scans.grid((20, 20, 20), (2, 2, 2)))
    other = scans.write_scan(tmp_path / "other.nii.gz", scans.grid((30, 30, 30)))
    for link in (pair.warp, f"{pair.warp},inverse"):
        arguments = ("--image", other, "-t", link, "--reference", place, "--output", tmp_path / "out.nii.gz")
        assert run("apply", *arguments, "--overwrite").exit_code == 0


def test_the_warp_of_the_tests_goes_from_the_reference_to_the_scan(shifted):
    """By definition, without `apply`: a voxel of the reference plus the displacement is a position in the scan."""
    inner = np.array([[20, 20, 20], [12, 30, 15]])
    found = field(shifted.grid, shift).points(shifted.grid.to_physical(inner))
    assert found == pytest.approx(shift(places(shifted.grid)[tuple(inner.T)]), abs=1e-4)
