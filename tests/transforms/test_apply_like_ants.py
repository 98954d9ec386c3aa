"""The same chain of files, given to `apply` and to ANTs, gives the same image, and points that ANTs maps back."""

import numpy as np
import pytest

from runtime.images.volume import read_volume
from tests import scans
from tests.known_pair import TURN, bend, done, make_pair, write_plain_affine

ants = pytest.importorskip("ants")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A field and an affine in ANTs' own files, and an image that lies at the end of both.

    The affine is given inverted, as users of ANTs do for the opposite direction.
    """
    folder = tmp_path_factory.mktemp("chain")
    pair = make_pair(folder, bend, scans.grid((44, 48, 42), axes="LPS"), scans.grid((38, 40, 36), (0.9, 1.0, 1.1)))
    end = scans.write_scan(folder / "end.nii.gz", scans.grid((50, 54, 48), axes="PIR"), lambda p: (p - 2) * 1.02)
    text, matrix = write_plain_affine(folder / "turn.txt", TURN), folder / "turn.mat"
    done("convert", "-t", text, "--to", "itk", "--reference", end, "--output", matrix)
    return pair.reference, end, pair.warp, matrix


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("nearest", "nearestNeighbor")])
def test_the_image(chain, tmp_path, ours, theirs):
    reference, end, warp, matrix = chain
    out, files = tmp_path / "out.nii.gz", [str(warp), str(matrix)]
    links = ("-t", warp, "-t", f"{matrix},inverse")
    done("apply", "--image", end, *links, "--reference", reference, "--output", out, "--interpolation", ours)
    images = [ants.image_read(str(path)) for path in (reference, end)]
    expected = ants.apply_transforms(*images, files, theirs, whichtoinvert=[False, True]).numpy()
    inner = (slice(6, -6),) * 3  # beyond an image's border voxels ANTs goes on for half a voxel
    different = np.abs(read_volume(out, "out").data - expected)[inner]
    assert np.mean(different > 1) < (0.01 if ours == "nearest" else 1e-9)
    assert expected[inner].std() > 50


def test_points(chain, tmp_path):
    """ANTs maps points through a chain in the direction of image resampling: from the reference to the scan."""
    pandas = pytest.importorskip("pandas")
    _, _, warp, matrix = chain
    given = np.random.default_rng(1).uniform(-8, 8, (20, 3)) + scans.CENTRE
    table = pandas.DataFrame(given * [-1, -1, 1], columns=["x", "y", "z"])
    table.to_csv(tmp_path / "points.csv", index=False)
    links, out = ("-t", warp, "-t", f"{matrix},inverse"), tmp_path / "out.csv"
    done("apply", "--points", tmp_path / "points.csv", "--points-in", "lps", *links, "--output", out)
    found = pandas.read_csv(out)
    back = ants.apply_transforms_to_points(3, found, [str(warp), str(matrix)], whichtoinvert=[False, True])
    assert back.to_numpy() == pytest.approx(table.to_numpy(), abs=0.01)
