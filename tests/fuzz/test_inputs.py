"""No file, however wrong, does more than be read or be refused in one line: no crash, no hang, no absurd result.

Each test tries some hundreds of damaged files, the same in every run. By hand, thousands of new ones (an hour or so):

    RPNET_FUZZ=20000 python -m pytest tests/fuzz/test_inputs.py
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.geometry.grid import FARTHEST_MM, SPACINGS_MM, Grid
from runtime.geometry.transform import AffineTransform, SpatialTransform
from runtime.images.scan_list import read_scan_list
from runtime.images.volume import read_labels, read_series, read_source, read_volume
from runtime.transforms import Space, read_transform, write_transform
from runtime.transforms.points.tables import read_points
from runtime.workflows.evaluation.pair_list import read_pairs
from tests.fuzz.mutations import MGH, NIFTI_1, NIFTI_2, anywhere, fuzzing, in_fields, texts, written

SHAPE = (6, 7, 5)
DATA = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
AFFINE = np.array([[0, 0, 2.5, -10], [2, 0, 0, -25], [0, 2, 0, 20], [0, 0, 0, 1.0]])
PATIENCE = 5  # seconds of computing, for what takes a few thousandths
LONGEST = 1000  # characters of a line, paths included
FAR = 1e6  # mm, beyond any body that a transform takes a point of a scan to


def nifti(kind: type, data: np.ndarray) -> bytes:
    image = kind(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


SERIES = np.stack([DATA, DATA + 1], -1)
IMAGES = {
    "NIfTI-1": (nifti(nib.Nifti1Image, DATA), NIFTI_1),
    "NIfTI-1 series": (nifti(nib.Nifti1Image, SERIES), NIFTI_1),
    "NIfTI-2": (nifti(nib.Nifti2Image, DATA), NIFTI_2),
    "MGH": (nib.MGHImage(DATA.astype(np.float32), AFFINE).to_bytes(), MGH),
}


@contextmanager
def refused_or_fine() -> Iterator[None]:
    """Lets refusals of one line pass; fails for other exceptions, and for what takes long."""
    begun = time.process_time()
    try:
        yield
        event("read")
    except InputError as error:
        event("refused")
        line = str(error)
        assert "\n" not in line and 0 < len(line) < LONGEST, line
    assert time.process_time() - begun < PATIENCE


def check_image(read: Callable, path: Path) -> None:
    with refused_or_fine():
        found = read(path, "--image")
        assert found.grid.shape == getattr(found, "data", np.empty(found.grid.shape)).shape[:3]
        assert 0.999 * SPACINGS_MM[0] < min(found.grid.spacing) and max(found.grid.spacing) < 1.001 * SPACINGS_MM[1]
        assert np.abs(found.grid.corners).max() <= FARTHEST_MM
        assert all("\n" not in line for line in found.warnings)
        if hasattr(found, "data"):
            assert np.isfinite(found.data).all()
            assert found.step is None or (np.isfinite(found.step[0]) and found.step[0] >= 0)


@pytest.mark.parametrize("kind", IMAGES)
def test_headers(tmp_path, kind):
    content, known = IMAGES[kind]
    suffix = ".mgh" if kind == "MGH" else ".nii"

    @fuzzing(600)
    @given(in_fields(content, known) | anywhere(content, within=600), st.booleans())
    def tried(mutated: bytes, packed: bool) -> None:
        path = written(tmp_path / f"a{suffix}", mutated, packed)
        for read in (read_volume, read_labels, read_series, read_source):
            check_image(read, path)

    tried()


@pytest.mark.parametrize("kind", IMAGES)
def test_compressed_streams(tmp_path, kind):
    sound = written(tmp_path / "sound.nii", IMAGES[kind][0], packed=True).read_bytes()

    @fuzzing(220)
    @given(anywhere(sound))
    def tried(mutated: bytes) -> None:
        check_image(read_series, written(tmp_path / "a.nii.gz", mutated, packed=False))

    tried()


def transform_files(folder: Path) -> dict[str, Path]:
    """One of every format that is written, by file name."""
    grid, end = Space(Grid(SHAPE, AFFINE), "a" * 64, "fixed.nii"), Space(Grid((5, 6, 7), np.eye(4)), "b" * 64, "m.nii")
    affine = AffineTransform(np.array([[1.1, 0.1, 0, 3], [-0.1, 0.9, 0, 2], [0, 0, 1, -4], [0, 0, 0, 1]]))
    flow = np.random.default_rng(0).normal(0, 1, (3, *SHAPE)).astype(np.float32)
    warp = SpatialTransform(affine.matrix, flow, grid.grid)
    files = {name: (warp, convention) for name, convention in WARPS.items()}
    files |= {name: (affine, convention) for name, convention in MATRICES.items()}
    for name, (transform, convention) in files.items():
        write_transform(folder / name, transform, convention, grid, end)
    return {name: folder / name for name in files}


WARPS = {"itk.nii": "itk", "freesurfer.nii": "freesurfer", "fsl.nii": "fsl", "learn2reg.nii": "learn2reg"}
MATRICES = {"ras.txt": "ras", "itk.tfm": "itk", "itk.mat": "itk", "flirt.mat": "fsl", "a.lta": "freesurfer"}
COMPOSITES = {"warp.h5": "h5"}


def check_transform(path: Path, convention: str) -> None:
    with refused_or_fine():
        found = read_transform(path, "-t", convention, Grid(SHAPE, AFFINE), Grid((5, 6, 7), np.eye(4)))
        moved = found.transform.points(np.array([[0.0, 0, 0], [-9, -20, 25]]))
        assert np.isfinite(moved).all() and np.abs(moved).max() < FAR


@pytest.mark.parametrize("name", (*WARPS, *MATRICES))
def test_transforms(tmp_path, name):
    (tmp_path / "sound").mkdir()
    content = transform_files(tmp_path / "sound")[name].read_bytes()
    mutations = anywhere(content) | (in_fields(content, NIFTI_1) if name in WARPS else anywhere(content))
    if name in MATRICES and b"\0" not in content:
        mutations |= texts(content.decode())

    @fuzzing(220)
    @given(mutations, st.sampled_from(("auto", WARPS.get(name) or MATRICES[name])))
    def tried(mutated: bytes, convention: str) -> None:
        check_transform(written(tmp_path / name, mutated, packed=False), convention)

    tried()


def test_composites(tmp_path):
    """Few: each is read by a process of its own."""
    grid = Space(Grid(SHAPE, AFFINE), "a" * 64, "fixed.nii")
    flow = np.ones((3, *SHAPE), np.float32)
    write_transform(tmp_path / "sound.h5", SpatialTransform(np.eye(4), flow, grid.grid), "h5", grid, grid)

    @fuzzing(25)
    @given(anywhere((tmp_path / "sound.h5").read_bytes()))
    def tried(mutated: bytes) -> None:
        check_transform(written(tmp_path / "a.h5", mutated, packed=False), "auto")

    tried()


POINTS = "x,y,z,t,label\n1.5,2,3,0,1\n-4,5e1,6.25,0,2\n7,8,9,0,3\n"
SCANS = "image,labels,mask\na.nii,l.nii,\na.nii,,l.nii\n"
PAIRS = "fixed,moving,fixed_labels,moving_labels,transform\na.nii,a.nii,l.nii,l.nii,\na.nii,a.nii,,,w.txt\n"


@pytest.mark.parametrize("text", [POINTS, SCANS, PAIRS], ids=["points", "scans", "pairs"])
def test_lists(tmp_path, text):
    for name in ("a.nii", "l.nii", "w.txt"):
        (tmp_path / name).write_bytes(IMAGES["NIfTI-1"][0])

    @fuzzing(400)
    @given(texts(text))
    def tried(mutated: bytes) -> None:
        path = written(tmp_path / "list.csv", mutated, packed=False)
        for read in (
            lambda: read_points(path, "ras"),
            lambda: read_scan_list("data", str(path)),
            lambda: read_pairs(path),
        ):
            with refused_or_fine():
                read()

    tried()
