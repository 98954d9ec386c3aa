"""Affine transforms in files of this project, ITK, ANTs, FLIRT and FreeSurfer, against SimpleITK and closed forms."""

import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.geometry.transform import AffineTransform, Chain
from runtime.transforms import Space, read_transform, verify_transform, write_transform
from runtime.transforms.conventions.plain_affine import read_affine, write_affine
from tests.transforms.round_trip_cases import AFFINES, CENTRE, FIXED, MOVING

START, END = Space(FIXED["LIA"], "a" * 64, "fixed.nii.gz"), Space(MOVING["LIA"], "b" * 64, "moving.nii.gz")
MATRIX = AFFINES["affine"]
POINTS = CENTRE + np.random.default_rng(0).normal(0, 20, (50, 3))
LPS = np.array([-1.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("convention", "name"),
    [
        ("ras", "a.txt"),
        ("itk", "a.txt"),
        ("itk", "a.tfm"),
        ("itk", "a.mat"),
        ("fsl", "a.mat"),
        ("freesurfer", "a.lta"),
        ("h5", "a.h5"),
    ],
)
def test_every_affine_file_keeps_sixteen_digits(tmp_path, convention, name):
    half = AffineTransform(AFFINES["rotation A"])
    transform = Chain((half, AffineTransform(MATRIX @ np.linalg.inv(half.matrix))))
    write_transform(tmp_path / name, transform, convention, START, END)
    found = read_transform(tmp_path / name, "-t", convention, START.grid, END.grid)
    assert found.transform.matrix == pytest.approx(MATRIX, abs=1e-12) and found.convention == convention
    assert verify_transform(tmp_path / name, convention, transform, START, END) < 1e-12


@pytest.mark.parametrize(
    ("name", "convention", "start", "end", "line"),
    [
        ("a.mat", "fsl", START, None, "^end: is not known, expected the moving image's grid"),
        ("a.mat", "fsl", None, END, "needs the fixed image's grid"),
        ("a.h5", "h5", None, END, "needs the fixed image's grid"),
    ],
)
def test_a_side_that_a_file_needs_is_asked_for(tmp_path, name, convention, start, end, line):
    with pytest.raises(InputError, match=line):
        write_transform(tmp_path / name, AffineTransform(MATRIX), convention, start, end)
    assert not list(tmp_path.iterdir())


def test_a_composite_of_thousands_of_parts_is_their_product(tmp_path):
    """In bounded time: the parts are multiplied one after the other."""
    part = "Transform: TranslationTransform_double_3_3\nParameters: 0.01 0 0\nFixedParameters: \n"
    text = "#Insight Transform File V1.0\nTransform: CompositeTransform_double_3_3\n" + 3000 * part
    (tmp_path / "a.tfm").write_text(text)
    assert read_transform(tmp_path / "a.tfm").transform.matrix[:3, 3] == pytest.approx([-30, 0, 0])


def test_a_centre_of_two_numbers_is_refused(tmp_path):
    text = "#Insight Transform File V1.0\nTransform: Euler3DTransform_double_3_3\nParameters: 0 0 1 0 0 0\n"
    (tmp_path / "a.tfm").write_text(f"{text}FixedParameters: 5 5\n")
    with pytest.raises(InputError, match=r"a\.tfm holds a Euler3DTransform with a centre of 2 numbers, expected 3"):
        read_transform(tmp_path / "a.tfm")


def test_a_composite_of_an_affine_holds_no_field(tmp_path):
    """SimpleITK maps points with it at any distance from the fixed grid; the metadata names both sides."""
    path = tmp_path / "transform.h5"
    write_transform(path, AffineTransform(MATRIX), "h5", START, END)
    expected = POINTS @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    assert path.stat().st_size < 20_000 and moved(sitk.ReadTransform(str(path))) == pytest.approx(expected, abs=1e-9)
    found = read_transform(path)
    assert (found.start.sha256, found.end.name) == ("a" * 64, "moving.nii.gz")


def test_ours_carries_metadata_that_other_readers_skip(tmp_path):
    path = tmp_path / "affine.txt"
    write_transform(path, AffineTransform(MATRIX), "ras", START, END)
    found = read_transform(path)
    assert (found.start.sha256, found.end.name) == ("a" * 64, "moving.nii.gz")
    assert np.array_equal(np.loadtxt(path), MATRIX)


def test_an_affine_survives_its_text_file_exactly(tmp_path):
    write_affine(tmp_path / "affine.txt", MATRIX / 3 + np.diag([0, 0, 0, 2 / 3]))
    assert np.array_equal(read_affine(tmp_path / "affine.txt", "--affine"), MATRIX / 3 + np.diag([0, 0, 0, 2 / 3]))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n", "expected a 4x4 matrix"),
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "singular"),
        ("1 0 0 0\n0 1 0 nan\n0 0 1 0\n0 0 0 1\n", "not finite"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n1 0 0 1\n", "last row"),
        ("#Insight Transform File V1.0\nTransform: AffineTransform\n", "not a text file of four rows"),
    ],
)
def test_affine_files_that_are_none_are_refused(tmp_path, content, fault):
    (tmp_path / "affine.txt").write_text(content)
    with pytest.raises(InputError, match=fault) as refusal:
        read_affine(tmp_path / "affine.txt", "--affine")
    assert str(refusal.value).startswith("--affine: ") and "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="does not exist"):
        read_affine(tmp_path / "none.txt", "--affine")


def moved(transform: sitk.Transform) -> np.ndarray:
    """`POINTS` as SimpleITK moves them."""
    return np.array([np.array(transform.TransformPoint(point * LPS)) * LPS for point in POINTS])


class TestTransformsOfITK:
    """Each kind, about a centre, as SimpleITK wrote it and as it moves points itself."""

    @pytest.fixture(
        params=[
            sitk.AffineTransform((1.1, 0.1, 0, -0.1, 0.9, 0.2, 0, 0.1, 1), (1, 2, 3), (5, 6, 7)),
            sitk.Euler3DTransform((5, 6, 7), 0.1, -0.2, 0.3, (1, 2, 3)),
            sitk.VersorRigid3DTransform((1, 2, 2), 0.4, (1, 2, 3), (5, 6, 7)),
            sitk.Similarity3DTransform(1.3, (1, 2, 2), 0.4, (1, 2, 3), (5, 6, 7)),
            sitk.ScaleVersor3DTransform((1.1, 0.9, 1.3), (1, 2, 2), 0.4, (1, 2, 3), (5, 6, 7)),
            sitk.ScaleSkewVersor3DTransform(
                (1.1, 0.9, 1.3), (0.01, 0.02, -0.03, 0.04, 0.05, 0.06), (1, 2, 2), 0.4, (1, 2, 3), (5, 6, 7)
            ),
            sitk.VersorTransform((1, 2, 2), 0.4, (5, 6, 7)),
            sitk.ScaleTransform(3, (1.1, 0.9, 1.3)),
            sitk.TranslationTransform(3, (1, 2, 3)),
        ],
        ids=lambda transform: transform.GetName(),
    )
    def transform(self, request):
        return request.param

    @pytest.mark.parametrize("suffix", [".tfm", ".mat", ".h5"])
    def test_moves_points_as_it_does(self, tmp_path, transform, suffix):
        path = tmp_path / f"a{suffix}"
        sitk.WriteTransform(transform, str(path))
        assert read_transform(path).transform.points(POINTS) == pytest.approx(moved(transform), abs=1e-9)

    @pytest.mark.parametrize("suffix", [".tfm", ".h5"])
    def test_of_a_composite_the_last_comes_first(self, tmp_path, transform, suffix):
        turn = sitk.Euler3DTransform((0, 0, 0), 0.3, 0.2, -0.1, (9, 8, 7))
        composite = sitk.CompositeTransform([transform, turn])
        path = tmp_path / f"a{suffix}"
        sitk.WriteTransform(composite, str(path))
        assert read_transform(path).transform.points(POINTS) == pytest.approx(moved(composite), abs=1e-9)

    @pytest.mark.parametrize("versor", [(5, 5, 5), (0.8, 0.6, 0.0), (1, 0, 0.001)])
    @pytest.mark.parametrize("kind", ["VersorRigid3DTransform", "ScaleVersor3DTransform"])
    def test_versors_of_length_1_and_more(self, tmp_path, kind, versor):
        """ITK shortens them to all but half a turn."""
        more = " 1 1 1" if kind.startswith("Scale") else ""
        (tmp_path / "a.tfm").write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\n"
            f"Parameters: {' '.join(map(str, versor))} 1 2 3{more}\nFixedParameters: 5 6 7\n"
        )
        expected = moved(sitk.ReadTransform(str(tmp_path / "a.tfm")))
        assert read_transform(tmp_path / "a.tfm").transform.points(POINTS) == pytest.approx(expected, abs=1e-9)

    def test_euler_angles_in_the_other_order(self, tmp_path):
        transform = sitk.Euler3DTransform((5, 6, 7), 0.1, -0.2, 0.3, (1, 2, 3))
        transform.SetComputeZYX(True)
        sitk.WriteTransform(transform, str(tmp_path / "a.tfm"))
        assert read_transform(tmp_path / "a.tfm").transform.points(POINTS) == pytest.approx(moved(transform), abs=1e-9)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "content", "fault"),
        [
            ("a.tfm", "#Insight Transform File V1.0\n", "holds 0 transforms, expected one"),
            (
                "a.tfm",
                "#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1\n"
                "FixedParameters: 1\n",
                "holds a BSplineTransform, expected one of AffineTransform",
            ),
            (
                "a.tfm",
                "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2\n"
                "FixedParameters: 0 0 0\n",
                "of 2 parameters, expected 12",
            ),
            (
                "a.tfm",
                "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 x\n",
                "cannot be read as a transform of ITK",
            ),
            ("a.mat", b"MATLAB 5.0 MAT-file\0", "version 5 or later"),
            ("a.mat", b"\0\0\0\0" * 3, "cannot be read as an affine of ANTs"),
            ("a.mat", b"\0\0\0\0\xff\xff\xff\x7f" + b"\1\0\0\0" * 3 + b"a\0", "cannot be read as an affine of ANTs"),
            ("a.lta", "type = 14\n", "is of type 14, expected 0"),
            ("a.lta", "nothing\n", "cannot be read as a linear transform of FreeSurfer"),
            ("a.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "may be a FLIRT matrix or a matrix in RAS mm"),
            ("a.xfm", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "may be a FLIRT matrix or a matrix in RAS mm"),
            (
                "a.txt",
                "1  0  0  0  \n0  1  0  0  \n0  0  1  0  \n0  0  0  1  \n",
                "may be a FLIRT matrix or a matrix in RAS mm",
            ),
        ],
    )
    def test_in_one_line(self, tmp_path, name, content, fault):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=fault) as refusal:
            read_transform(tmp_path / name)
        assert str(refusal.value).startswith("-t: ") and "\n" not in str(refusal.value)

    def test_flirt_without_grids(self, tmp_path):
        write_transform(tmp_path / "a.mat", AffineTransform(MATRIX), "fsl", START, END)
        with pytest.raises(InputError, match="is a FLIRT matrix, which needs the grids of both images"):
            read_transform(tmp_path / "a.mat", convention="fsl", end=END.grid)


@pytest.mark.parametrize("name", ["a.txt", "a.mat"])
def test_a_matrix_is_whose_it_is_said_to_be(tmp_path, name):
    np.savetxt(tmp_path / name, MATRIX)
    assert np.array_equal(read_transform(tmp_path / name, convention="ras").transform.matrix, MATRIX)
    flirt = read_transform(tmp_path / name, "-t", "fsl", START.grid, END.grid)
    assert flirt.convention == "fsl" and not np.allclose(flirt.transform.matrix, MATRIX)


def test_big_endian_matlab_files(tmp_path):
    """ANTs on other machines; the numbers are those of the little-endian file."""
    write_transform(tmp_path / "a.mat", AffineTransform(MATRIX), "itk", START, END)
    little = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "b.mat").write_bytes(_swapped(little))
    assert read_transform(tmp_path / "b.mat").transform.matrix == pytest.approx(MATRIX)


def _swapped(content: bytes) -> bytes:
    result, at = b"", 0
    while at < len(content):
        kind, rows, columns, imaginary, length = np.frombuffer(content, "<i4", 5, at)
        name = content[at + 20 : at + 20 + length]
        numbers = np.frombuffer(content, "<f8", rows * columns, at + 20 + length)
        head = np.array([kind + 1000, rows, columns, imaginary, length], ">i4").tobytes()
        result += head + name + numbers.astype(">f8").tobytes()
        at += 20 + length + numbers.nbytes
    return result


class TestLinearTransformsOfFreeSurfer:
    def test_the_images_are_named_in_the_file(self, tmp_path):
        write_transform(tmp_path / "a.lta", AffineTransform(MATRIX), "freesurfer", START, END)
        found = read_transform(tmp_path / "a.lta")
        assert found.start.grid.close(START.grid) and found.end.grid.close(END.grid)
        assert (found.start.name, found.end.name) == ("fixed.nii.gz", "moving.nii.gz")

    def test_voxels_to_voxels(self, tmp_path):
        """Type 0 holds the same map between the voxels of the moving and the fixed image."""
        path = tmp_path / "a.lta"
        write_transform(path, AffineTransform(MATRIX), "freesurfer", START, END)
        lines = path.read_text().splitlines()
        voxels = np.linalg.inv(START.grid.affine) @ np.linalg.inv(MATRIX) @ END.grid.affine
        at = lines.index("1 4 4") + 1
        lines[0], lines[at : at + 4] = "type      = 0", [" ".join(map(repr, map(float, row))) for row in voxels]
        path.write_text("\n".join(lines) + "\n")
        assert read_transform(path).transform.matrix == pytest.approx(MATRIX)
