"""Other tools at work on transform files: how each applies one that we wrote, and how each writes one that we read.

`APPLY` holds for each (convention, suffix, tool) a function (path, case) -> (places of the case's voxels in RAS mm, the
moving image resampled onto the fixed grid). `WRITE` holds functions (folder, case) -> path that write the case's map.
Tools are SimpleITK, ANTsPy, nitransforms, and "formula", `tests.transforms.round_trip_formulas`.
"""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from runtime.images.resampling.resample import resample_through
from runtime.transforms import read_transform, write_transform
from tests.transforms.round_trip_cases import Case
from tests.transforms.round_trip_formulas import APPLY as APPLY_FORMULA
from tests.transforms.round_trip_formulas import WRITE as WRITE_FORMULA
from tests.transforms.round_trip_formulas import Applied

Array = np.ndarray
Key = tuple[str, ...]  # convention, suffix, tool
LPS = np.array([-1.0, -1.0, 1.0])
LPS_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


# SimpleITK


def _sitk_applies(transform: sitk.Transform, case: Case) -> Applied:
    places = [np.array(transform.TransformPoint(point * LPS)) * LPS for point in case.points]
    images = [sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (case.moving, case.fixed)]
    return np.array(places), sitk.GetArrayFromImage(sitk.Resample(*images, transform, sitk.sitkLinear, 0.0)).T


def sitk_field(path: Path, case: Case) -> Applied:
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    return _sitk_applies(sitk.DisplacementFieldTransform(field), case)


def sitk_file(path: Path, case: Case) -> Applied:
    return _sitk_applies(sitk.ReadTransform(str(path)), case)


def _sitk_affine(case: Case, kind: type[sitk.Transform] = sitk.AffineTransform) -> sitk.Transform:
    """The case's affine as ITK has it, about a centre that is not 0."""
    transform, lps = kind(3) if kind is sitk.AffineTransform else kind(), LPS_AFFINE @ case.affine @ LPS_AFFINE
    centre = np.array([3.0, -4.0, 5.0])
    transform.SetMatrix(lps[:3, :3].ravel())
    transform.SetCenter(centre)
    transform.SetTranslation(lps[:3, 3] - centre + lps[:3, :3] @ centre)
    return transform


def _sitk_vectors(case: Case, displacement: Array) -> sitk.Image:
    vectors = np.ascontiguousarray((displacement * LPS).transpose(2, 1, 0, 3))
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    field.CopyInformation(sitk.ReadImage(str(case.fixed)))
    return field


def sitk_writes_field(folder: Path, case: Case) -> Path:
    """A field that ITK itself sampled, where the map is affine."""
    path, image = folder / "sitk.nii.gz", sitk.ReadImage(str(case.fixed))
    if case.affine is None:
        field = _sitk_vectors(case, case.displacement)
    else:
        field = sitk.TransformToDisplacementField(_sitk_affine(case), sitk.sitkVectorFloat32, *_sitk_grid(image))
    sitk.WriteImage(field, str(path))
    return path


def _sitk_grid(image: sitk.Image) -> tuple:
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


def sitk_writes_composite(folder: Path, case: Case) -> Path:
    """The map as a field and the shift of 5 mm that takes back what the field does too much."""
    path, shift = folder / "sitk.h5", np.array([5.0, 0, 0])
    field = sitk.DisplacementFieldTransform(_sitk_vectors(case, case.displacement + shift))
    back = sitk.AffineTransform(3)
    back.SetTranslation(-shift * LPS)
    sitk.WriteTransform(sitk.CompositeTransform([back, field]), str(path))
    return path


def sitk_writes_affine(suffix: str) -> Callable[[Path, Case], Path]:
    def write(folder: Path, case: Case) -> Path:
        path = folder / f"sitk{suffix}"
        rigid = case.map.startswith(("shift", "rotation"))
        sitk.WriteTransform(_sitk_affine(case, sitk.Euler3DTransform if rigid else sitk.AffineTransform), str(path))
        return path

    return write


# ANTsPy


def ants_applies(path: Path, case: Case) -> Applied:
    return ants_applies_chain([path], case)


def ants_applies_chain(paths: list[Path], case: Case) -> Applied:
    """Several files in the order of ``antsApplyTransforms -t``."""
    import ants
    import pandas

    files, table = list(map(str, paths)), pandas.DataFrame(case.points * LPS, columns=list("xyz"))
    places = ants.apply_transforms_to_points(3, table, files)[list("xyz")].to_numpy() * LPS
    fixed, moving = (ants.image_read(str(path)) for path in (case.fixed, case.moving))
    return places, ants.apply_transforms(fixed, moving, files, interpolator="linear").numpy()


def ants_writes_affine(folder: Path, case: Case) -> Path:
    import ants

    lps = LPS_AFFINE @ case.affine @ LPS_AFFINE
    centre = np.array([3.0, -4.0, 5.0])
    shift = lps[:3, 3] - centre + lps[:3, :3] @ centre
    transform = ants.create_ants_transform(
        transform_type="AffineTransform", matrix=lps[:3, :3], translation=shift, center=centre, precision="double"
    )
    path = folder / "ants.mat"
    ants.write_transform(transform, str(path))
    return path


def ants_writes_field(folder: Path, case: Case) -> Path:
    """What antsApplyTransforms composes: an affine it wrote itself, or the field and a still one."""
    import ants

    parts = [ants_writes_affine(folder, case) if case.affine is not None else sitk_writes_field(folder, case)]
    fixed, moving = (ants.image_read(str(path)) for path in (case.fixed, case.moving))
    return Path(ants.apply_transforms(fixed, moving, list(map(str, parts)), compose=str(folder / "ants")))


# nitransforms


def _nitransforms_applies(transform, case: Case) -> Applied:
    from nitransforms.resampling import apply

    image = apply(transform, str(case.moving), reference=str(case.fixed), order=1, prefilter=False)
    return transform.map(case.points), np.asanyarray(image.dataobj)


def nitransforms_field(path: Path, case: Case) -> Applied:
    from nitransforms.nonlinear import DenseFieldTransform

    return _nitransforms_applies(DenseFieldTransform.from_filename(path, fmt="itk"), case)


def nitransforms_vectors(path: Path, case: Case) -> Applied:
    """A file of RAS mm as it is: nitransforms has no name for it, but the same numbers inside."""
    from nitransforms.nonlinear import DenseFieldTransform

    image = nib.load(path)
    vectors = nib.Nifti1Image(np.asanyarray(image.dataobj)[:, :, :, 0], image.affine)
    return _nitransforms_applies(DenseFieldTransform(vectors, is_deltas=True), case)


def nitransforms_composite(path: Path, case: Case) -> Applied:
    from nitransforms.manip import load

    return _nitransforms_applies(load(path, fmt="itk"), case)


def nitransforms_affine(fmt: str) -> Callable[[Path, Case], Applied]:
    def apply(path: Path, case: Case) -> Applied:
        from nitransforms.linear import Affine

        return _nitransforms_applies(Affine.from_filename(path, fmt, case.fixed, case.moving), case)

    return apply


def nitransforms_writes_field(folder: Path, case: Case) -> Path:
    from nitransforms.nonlinear import DenseFieldTransform

    path = folder / "nitransforms.nii.gz"
    vectors = nib.Nifti1Image(case.displacement.copy(), nib.load(case.fixed).affine)
    DenseFieldTransform(vectors, is_deltas=True).to_filename(path, fmt="itk")
    return path


def nitransforms_writes_affine(fmt: str, suffix: str) -> Callable[[Path, Case], Path]:
    def write(folder: Path, case: Case) -> Path:
        from nitransforms.linear import Affine

        path = folder / f"nitransforms{suffix}"
        Affine(case.affine, reference=case.fixed).to_filename(path, fmt=fmt, moving=case.moving)
        return path

    return write


def ras_matrix(path: Path, case: Case) -> Applied:
    """Our own text: four rows of four numbers."""
    from nitransforms.linear import Affine

    return _nitransforms_applies(Affine(np.loadtxt(path), reference=case.fixed), case)


APPLY: dict[Key, Callable[[Path, Case], Applied]] = {
    ("itk", ".nii.gz", "SimpleITK"): sitk_field,
    ("itk", ".nii.gz", "ANTsPy"): ants_applies,
    ("itk", ".nii.gz", "nitransforms"): nitransforms_field,
    ("h5", ".h5", "SimpleITK"): sitk_file,
    ("h5", ".h5", "ANTsPy"): ants_applies,
    ("h5", ".h5", "nitransforms"): nitransforms_composite,
    ("freesurfer", ".nii.gz", "SimpleITK"): sitk_field,
    ("freesurfer", ".nii.gz", "ANTsPy"): ants_applies,
    ("freesurfer", ".nii.gz", "nitransforms"): nitransforms_vectors,
    **{(convention, ".nii.gz", "formula"): apply for convention, apply in APPLY_FORMULA.items()},
    ("ras", ".txt", "nitransforms"): ras_matrix,
    ("itk", ".tfm", "SimpleITK"): sitk_file,
    ("itk", ".tfm", "nitransforms"): nitransforms_affine("itk"),
    ("itk", ".txt", "ANTsPy"): ants_applies,
    ("itk", ".mat", "SimpleITK"): sitk_file,
    ("itk", ".mat", "ANTsPy"): ants_applies,
    ("itk", ".mat", "nitransforms"): nitransforms_affine("itk"),
    ("fsl", ".mat", "nitransforms"): nitransforms_affine("fsl"),
    ("freesurfer", ".lta", "nitransforms"): nitransforms_affine("fs"),
}
WRITE: dict[Key, Callable[[Path, Case], Path]] = {
    ("itk", ".nii.gz", "SimpleITK"): sitk_writes_field,
    ("itk", ".nii.gz", "ANTsPy"): ants_writes_field,
    ("itk", ".nii.gz", "nitransforms"): nitransforms_writes_field,
    ("h5", ".h5", "SimpleITK"): sitk_writes_composite,
    **{(convention, ".nii.gz", "formula"): write for convention, write in WRITE_FORMULA.items()},
    ("itk", ".tfm", "SimpleITK"): sitk_writes_affine(".tfm"),
    ("itk", ".txt", "SimpleITK"): sitk_writes_affine(".txt"),
    ("itk", ".mat", "SimpleITK"): sitk_writes_affine(".mat"),
    ("itk", ".mat", "ANTsPy"): ants_writes_affine,
    ("itk", ".tfm", "nitransforms"): nitransforms_writes_affine("itk", ".tfm"),
    ("fsl", ".mat", "nitransforms"): nitransforms_writes_affine("fsl", ".mat"),
    ("freesurfer", ".lta", "nitransforms"): nitransforms_writes_affine("fs", ".lta"),
}
MODULES = {"SimpleITK": "SimpleITK", "ANTsPy": "ants", "nitransforms": "nitransforms", "formula": "scipy"}
AFFINE_FILES = (".txt", ".tfm", ".mat", ".lta")


def holds(suffix: str, case: Case) -> bool:
    """Whether a file of this kind can hold the case's map."""
    return suffix not in AFFINE_FILES or case.affine is not None


def written(folder: Path, key: Key, case: Case, compact: bool = False) -> Path:
    """The case's map in a file of ours."""
    path = folder / f"ours{key[1]}"
    write_transform(path, case.transform, key[0], case.start, case.end, compact=compact)
    return path


def read_back(path: Path, key: Key, case: Case) -> Applied:
    """A file of another tool, applied by us."""
    grids = case.start.grid, case.end.grid
    convention = key[0] if key[0] in ("fsl", "learn2reg") else "auto"
    transform = read_transform(path, "-t", convention, *grids).transform
    moving = case.moving_values.astype(np.float32)
    image = resample_through(moving, case.end.grid, transform.displacement(case.start.grid), case.start.grid)
    return transform.points(case.points), image
