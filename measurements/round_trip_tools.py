"""Two more tools for the round trips, if installed (``pip install fslpy surfa``): FSL's and FreeSurfer's Python."""

import contextlib
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from tests.transforms.round_trip_cases import Case
from tests.transforms.round_trip_tools import APPLY, WRITE, Applied


def _fslpy_images(case: Case) -> tuple:
    from fsl.data.image import Image

    return Image(str(case.moving)), Image(str(case.fixed))


def fslpy_applies(path: Path, case: Case) -> Applied:
    from fsl.transform.fnirt import readFnirt
    from fsl.transform.nonlinear import applyDeformation

    source, reference = _fslpy_images(case)
    field = readFnirt(str(path), source, reference)
    image = applyDeformation(source, field, order=1, mode="nearest")
    return field.transform(case.points, from_="world", to="world"), np.asarray(image)


def fslpy_writes(folder: Path, case: Case) -> Path:
    from fsl.transform.fnirt import toFnirt
    from fsl.transform.nonlinear import DeformationField

    source, reference = _fslpy_images(case)
    spaces = {"srcSpace": "world", "refSpace": "world", "defType": "relative", "xform": reference.voxToWorldMat}
    field = DeformationField(case.displacement.astype(float), src=source, ref=reference, **spaces)
    path = folder / "fslpy.nii.gz"
    toFnirt(field).save(str(path))
    return path


def fslpy_flirt(path: Path, case: Case) -> Applied:
    """Apply a FLIRT matrix, which maps the moving to the fixed image."""
    from fsl.transform.flirt import fromFlirt, readFlirt
    from fsl.utils.image.resample import resampleToReference

    moving, fixed = _fslpy_images(case)
    matrix = fromFlirt(readFlirt(str(path)), moving, fixed, from_="world", to="world")
    image, _ = resampleToReference(moving, fixed, matrix=matrix, order=1, mode="nearest", smooth=False)
    return apply_affine(np.linalg.inv(matrix), case.points), image


def _surfa_warp(path: Path, case: Case):
    import surfa

    moving, fixed = (surfa.load_volume(str(path)) for path in (case.moving, case.fixed))
    warp = surfa.load_warp(str(path))
    return surfa.Warp(warp.data, source=moving.geom, target=fixed.geom, format=warp.format), moving


def surfa_applies(path: Path, case: Case) -> Applied:
    import surfa

    warp, moving = _surfa_warp(path, case)
    image = np.asarray(warp.transform(moving).data)
    ends = warp.convert(surfa.Warp.Format.abs_ras).data
    return ends[tuple(case.voxels.T)], image


def surfa_writes(folder: Path, case: Case) -> Path:
    import surfa

    moving, fixed = (surfa.load_volume(str(path)) for path in (case.moving, case.fixed))
    kind = surfa.Warp.Format.disp_ras
    path = folder / "surfa.nii.gz"
    surfa.Warp(case.displacement.copy(), source=moving.geom, target=fixed.geom, format=kind).save(str(path))
    return path


def add_installed() -> None:
    """Add the installed ones of these tools to `APPLY` and `WRITE`."""
    with contextlib.suppress(ImportError):
        import fsl.transform  # noqa: F401

        APPLY["fsl", ".nii.gz", "fslpy"], WRITE["fsl", ".nii.gz", "fslpy"] = fslpy_applies, fslpy_writes
        APPLY["fsl", ".mat", "fslpy"] = fslpy_flirt
    with contextlib.suppress(ImportError):
        import surfa  # noqa: F401

        APPLY["freesurfer", ".nii.gz", "surfa"] = surfa_applies
        WRITE["freesurfer", ".nii.gz", "surfa"] = surfa_writes
