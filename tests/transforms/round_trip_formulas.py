"""Displacement conventions by their published formulas, implemented with NumPy, nibabel and SciPy only.

The reference of `tests.transforms.test_round_trips` if no tool is available, and a second one otherwise. Nothing of
`runtime.transforms` is used.
"""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.transforms.round_trip_cases import Case, sampled, voxels_of

Array = np.ndarray
Applied = tuple[Array, Array]  # places of the case's voxels, RAS mm, and the resampled image


def _formula(places: Callable[[Array, Array, Case], Array]) -> Callable[[Path, Case], Applied]:
    def apply(path: Path, case: Case) -> Applied:
        field = nib.load(path)
        numbers = field.get_fdata().reshape(-1, 3)
        everywhere = places(voxels_of(case.start.grid), numbers, case)
        moving = nib.load(case.moving)
        shape, index = field.shape[:3], np.ravel_multi_index(tuple(case.voxels.T), field.shape[:3])
        image = sampled(moving.get_fdata(), nib.affines.apply_affine(np.linalg.inv(moving.affine), everywhere))
        return everywhere[index], image.reshape(shape)

    return apply


def _writes_formula(
    numbers: Callable[[Array, Array, Case], Array], name: str, shape: tuple[int, ...], intent: int
) -> Callable[[Path, Case], Path]:
    def write(folder: Path, case: Case) -> Path:
        path, fixed = folder / name, nib.load(case.fixed)
        voxels = voxels_of(case.start.grid)
        points = nib.affines.apply_affine(fixed.affine, voxels)
        values = numbers(voxels, points + case.displacement.reshape(-1, 3), case)
        image = nib.Nifti1Image(values.reshape(*fixed.shape, *shape).astype(np.float32), fixed.affine)
        image.header.set_intent(intent, allow_unknown=True)
        nib.save(image, path)
        return path

    return write


def _fsl_frame(path: Path) -> Array:
    """(4, 4): voxel -> mm as FLIRT's FAQ has it: times the voxel size, the first axis turned where det > 0."""
    image = nib.load(path)
    sizes = image.header.get_zooms()[:3]
    frame = np.diag([*sizes, 1.0]).astype(float)
    if np.linalg.det(image.affine) > 0:
        frame = np.diag([-sizes[0], *sizes[1:], 1.0]).astype(float)
        frame[0, 3] = (image.shape[0] - 1) * sizes[0]
    return frame


def _fsl_places(voxels: Array, numbers: Array, case: Case) -> Array:
    moved = nib.affines.apply_affine(_fsl_frame(case.fixed), voxels) + numbers
    moving_voxels = nib.affines.apply_affine(np.linalg.inv(_fsl_frame(case.moving)), moved)
    return nib.affines.apply_affine(nib.load(case.moving).affine, moving_voxels)


def _fsl_numbers(voxels: Array, places: Array, case: Case) -> Array:
    moving_voxels = nib.affines.apply_affine(np.linalg.inv(nib.load(case.moving).affine), places)
    ends = nib.affines.apply_affine(_fsl_frame(case.moving), moving_voxels)
    return ends - nib.affines.apply_affine(_fsl_frame(case.fixed), voxels)


def _learn2reg_places(voxels: Array, numbers: Array, case: Case) -> Array:
    return nib.affines.apply_affine(nib.load(case.fixed).affine, voxels + numbers)


def _learn2reg_numbers(voxels: Array, places: Array, case: Case) -> Array:
    return nib.affines.apply_affine(np.linalg.inv(nib.load(case.fixed).affine), places) - voxels


def _ras_numbers(voxels: Array, places: Array, case: Case) -> Array:
    return places - nib.affines.apply_affine(nib.load(case.fixed).affine, voxels)


def _ras_places(voxels: Array, numbers: Array, case: Case) -> Array:
    return nib.affines.apply_affine(nib.load(case.fixed).affine, voxels) + numbers


APPLY = {
    "freesurfer": _formula(_ras_places),
    "fsl": _formula(_fsl_places),
    "learn2reg": _formula(_learn2reg_places),
}
WRITE = {
    "freesurfer": _writes_formula(_ras_numbers, "ras.nii.gz", (1, 3), 1006),
    "fsl": _writes_formula(_fsl_numbers, "fsl.nii.gz", (3,), 2006),
    "learn2reg": _writes_formula(_learn2reg_numbers, "disp.nii.gz", (3,), 0),
}
