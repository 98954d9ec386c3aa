"""FSL's files in chains: they are defined only by two images, whose grids must be the right ones."""

import nibabel as nib
import numpy as np
import pytest

from runtime.geometry.transform import AffineTransform
from runtime.transforms import read_transform, write_transform
from tests import scans
from tests.known_pair import SHIFT, TURN, bend, done, field, refused, side, write_plain_affine

PLACES = {
    "a": scans.grid((40, 44, 36), (1.1, 1.0, 1.2), axes="LPS"),
    "b": scans.grid((30, 36, 44), (1.3, 1.1, 0.9), rotation=scans.OBLIQUE),
    "c": scans.grid((52, 38, 46), (0.8, 1.4, 1.0), axes="PIR"),
}
TO_RAS = ("--to", "ras")
INNER = scans.CENTRE + np.random.default_rng(0).normal(0, 4, (20, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images on three grids, and FLIRT's matrices a -> b and b -> c, and warps of the same, without metadata."""
    place = tmp_path_factory.mktemp("three grids")
    for name, grid in PLACES.items():
        scans.write_scan(place / f"{name}.nii.gz", grid)
    shift = np.eye(4)
    shift[:3, 3] = SHIFT
    for (start, end), matrix in {"ab": TURN, "bc": shift}.items():
        sides = [side(place / f"{name}.nii.gz") for name in (start, end)]
        write_transform(place / f"{start}{end}.mat", AffineTransform(matrix), "fsl", *sides)
    sides = [side(place / f"{name}.nii.gz") for name in "bc"]
    write_transform(place / "whole.nii.gz", field(PLACES["b"], bend), "fsl", *sides)
    whole = nib.load(place / "whole.nii.gz")
    whole.header.extensions.clear()
    nib.save(whole, place / "bc.nii.gz")
    return place


def through(points, *matrices):
    for matrix in matrices:
        points = points @ matrix[:3, :3].T + matrix[:3, 3]
    return points


def test_matrices_of_flirt_are_converted_one_by_one_and_then_composed(folder, tmp_path):
    """Only the outer grids of a chain are named, so two matrices are refused; the remedy gives the truth."""
    fsl, out = ("--convention", "fsl"), tmp_path / "out.txt"
    outer = ("--fixed", folder / "a.nii.gz", "--moving", folder / "c.nii.gz")
    line = refused("compose", "-t", folder / "ab.mat", "-t", folder / "bc.mat", *fsl, *outer, "--output", out, *TO_RAS)
    remedy = f"first convert by itself: convert -t {folder / 'ab.mat'} --convention fsl --fixed IMAGE --moving IMAGE"
    assert line.endswith(f"ab.mat: is a FLIRT matrix, which needs the grids of both images; {remedy}")
    for start, end in ("ab", "bc"):
        images = ("--fixed", folder / f"{start}.nii.gz", "--moving", folder / f"{end}.nii.gz")
        done("convert", "-t", folder / f"{start}{end}.mat", *fsl, *images, *TO_RAS, "--output", tmp_path / f"{end}.txt")
    done("compose", "-t", tmp_path / "b.txt", "-t", tmp_path / "c.txt", *TO_RAS, "--output", out)
    shift = np.eye(4)
    shift[:3, 3] = SHIFT
    assert np.loadtxt(out) == pytest.approx(shift @ TURN, abs=1e-9)


@pytest.mark.parametrize("inverted", [False, True])
def test_the_outer_links_take_the_outer_images(folder, tmp_path, inverted):
    """A warp at the chain's end, and the inverse of all."""
    turn = write_plain_affine(tmp_path / "turn.txt", TURN)
    names = [str(turn), str(folder / "bc.nii.gz")]
    links = [f"{name},inverse" for name in reversed(names)] if inverted else names
    chain = [word for link in links for word in ("-t", link)]
    images = ("--fixed", folder / "b.nii.gz", "--moving", folder / "c.nii.gz")
    reference = ("--reference", folder / ("c.nii.gz" if inverted else "b.nii.gz"))
    done("compose", *chain, *images, *reference, "--output", tmp_path / "out.nii.gz")
    found = read_transform(tmp_path / "out.nii.gz").transform.points(INNER)
    if inverted:
        assert bend(through(found, TURN)) == pytest.approx(INNER, abs=0.1)
    else:
        assert found == pytest.approx(bend(through(INNER, TURN)), abs=0.1)


def test_a_warp_in_front_of_others_does_not_end_where_the_chain_does(folder, tmp_path):
    turn = write_plain_affine(tmp_path / "turn.txt", TURN)
    chain = ("-t", folder / "bc.nii.gz", "-t", turn, "--moving", folder / "a.nii.gz")
    line = refused("compose", *chain, "--output", tmp_path / "out.nii.gz")
    assert "bc.nii.gz: is an FSL warp, which needs the moving image's grid as well; first convert by itself" in line


def test_one_file_alone_names_the_options(folder, tmp_path):
    line = refused("convert", "-t", folder / "bc.nii.gz", "--output", tmp_path / "out.nii.gz")
    assert line.endswith("which needs the moving image's grid as well; add --moving IMAGE")
    line = refused("convert", "-t", folder / "ab.mat", "--convention", "fsl", "--output", tmp_path / "out.nii.gz")
    assert line.endswith("which needs the grids of both images; add --fixed IMAGE --moving IMAGE")


class TestVoxelSizesThatContradictTheAffine:
    """FSL measures by pixdim; in a header whose sform has another scale its numbers would silently mean other mm."""

    @pytest.fixture
    def scaled(self, folder, tmp_path):
        image = nib.load(folder / "c.nii.gz")
        image.header["pixdim"][1:4] *= 2
        nib.save(image, tmp_path / "scaled.nii.gz")
        return tmp_path / "scaled.nii.gz"

    @pytest.mark.parametrize(
        ("name", "convention", "output"),
        [
            ("bc.mat", "itk", "out.mat"),
            ("bc.nii.gz", "itk", "out.nii.gz"),
            ("turn.txt", "fsl", "out.mat"),
            ("turn.txt", "fsl", "out.nii.gz"),
        ],
    )
    def test_fsls_files_are_neither_read_nor_written(self, folder, scaled, tmp_path, name, convention, output):
        write_plain_affine(folder / "turn.txt", TURN)
        own = ("--convention", "fsl") if name == "bc.mat" else ()
        given = ("-t", folder / name, *own, "--fixed", folder / "b.nii.gz", "--moving", scaled, "--to", convention)
        line = refused("convert", *given, "--output", tmp_path / output)
        fault = "has voxels of 1.6 x 2.8 x 2 mm in its header (pixdim), which FSL uses, but of 0.8 x 1.4 x 1 by"
        assert f"scaled.nii.gz: {fault}" in line and not (tmp_path / output).exists()

    def test_others_are_and_the_metadata_keeps_it(self, folder, scaled, tmp_path):
        images = ("--fixed", folder / "b.nii.gz", "--moving", scaled)
        turn, first = write_plain_affine(tmp_path / "turn.txt", TURN), tmp_path / "first.nii.gz"
        done("convert", "-t", turn, *images, "--reference", folder / "b.nii.gz", "--output", first)
        assert read_transform(first).end.zooms == pytest.approx((1.6, 2.8, 2.0))
        arguments = ("convert", "-t", first, "--to", "fsl", "--output", tmp_path / "fsl.nii.gz")
        assert "which FSL uses" in refused(*arguments)

    def test_the_remedy_makes_a_copy_where_they_agree(self, folder, scaled, tmp_path):
        done("apply", "--image", scaled, "--reference", scaled, "--output", tmp_path / "copy.nii.gz")
        images = ("--fixed", folder / "b.nii.gz", "--moving", tmp_path / "copy.nii.gz")
        given = ("-t", folder / "bc.mat", "--convention", "fsl", *images, *TO_RAS)
        done("convert", *given, "--output", tmp_path / "out.txt")
        assert np.loadtxt(tmp_path / "out.txt")[:3, 3] == pytest.approx(SHIFT)

    def test_a_warp_whose_own_header_contradicts_itself(self, folder, tmp_path):
        warp = nib.load(folder / "bc.nii.gz")
        warp.header["pixdim"][1:4] *= 2
        nib.save(warp, tmp_path / "warp.nii.gz")
        arguments = ("-t", tmp_path / "warp.nii.gz", "--moving", folder / "c.nii.gz")
        assert "which FSL uses" in refused("convert", *arguments, "--output", tmp_path / "out.nii.gz")
