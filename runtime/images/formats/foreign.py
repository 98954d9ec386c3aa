"""Unsupported image formats, recognised by content or name, so that a refusal can say how to convert them."""

from pathlib import Path

BEGINNING = 1024  # bytes by which a format is recognised
DICOM_FOLDER = "dcm2niix -z y -o . FOLDER"
BY_SIMPLEITK = (
    "python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('{name}'), '{stem}.nii.gz')\" (pip install SimpleITK)"
)
BY_NIBABEL = "python -c \"import nibabel as n; n.save(n.Nifti1Image.from_image(n.load('{name}')), '{stem}.nii.gz')\""
_NETCDF = (b"CDF\x01", b"CDF\x02")
_FORMATS: tuple[tuple[str, tuple[str, ...], tuple[bytes, ...], str], ...] = (  # (name, suffixes, first bytes, command)
    ("a NRRD file", (".nrrd", ".nhdr"), (b"NRRD000",), BY_SIMPLEITK),
    ("a MetaImage file", (".mha", ".mhd"), (b"ObjectType", b"NDims", b"Comment = "), BY_SIMPLEITK),
    ("a MINC image", (".mnc", ".mnc.gz"), _NETCDF, "mnc2nii {name} {stem}.nii, or mri_convert {name} {stem}.nii.gz"),
    ("an image of MRtrix", (".mif", ".mif.gz", ".mih"), (b"mrtrix image",), "mrconvert {name} {stem}.nii.gz"),
    ("an image of AFNI", (".head", ".brik", ".brik.gz"), (), "3dAFNItoNIFTI -prefix {stem}.nii.gz {name}"),
    ("an Analyze or NIfTI pair", (".hdr", ".img", ".hdr.gz", ".img.gz"), (), BY_NIBABEL),
    ("a DICOM file", (".dcm", ".ima"), (), "dcm2niix -z y -o . ITS_FOLDER"),
    ("a NumPy array", (".npy", ".npz"), (b"\x93NUMPY",), "save it with nibabel, which needs its affine"),
    ("an image of BrainVoyager", (".vmr",), (), "nibabel and bvbabel, or BrainVoyager's own export to NIfTI"),
)
_NO_IMAGES: tuple[tuple[str, tuple[bytes, ...], str], ...] = (  # (name, first bytes, remedy)
    ("a pointer of Git LFS", (b"version https://git-lfs.github.com/",), "fetch the file itself: git lfs pull"),
    ("a pointer of git-annex or DataLad", (b"/annex/objects/",), "fetch the file itself: datalad get {name}"),
    ("a web page", (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "the download failed; download it again"),
    ("a zip archive", (b"PK\x03\x04",), "unpack it: unzip {name}"),
    ("compressed by another program than gzip", (b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"), "unpack it, or use gzip"),
)


def foreign_image(path: Path, beginning: bytes) -> str | None:
    """Return the name of an unsupported format and the command that converts it to NIfTI; None: unknown.

    Args:
        path: the file.
        beginning: its first bytes, decompressed.
    """
    lower = path.name.lower()
    for what, marks, remedy in _NO_IMAGES:
        if beginning.startswith(marks):
            return f"{what}, which is not supported; {remedy.format(name=path.name)}"
    if beginning[128:132] == b"DICM":
        return _conversion("a DICOM file", "dcm2niix -z y -o . ITS_FOLDER", path)
    for what, _, marks, command in _FORMATS:
        if marks and beginning.startswith(marks):
            return _conversion(what, command, path)
    if beginning[344:348] in (b"ni1\0", b"\0\0\0\0") and beginning[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return _conversion("the header of an Analyze or NIfTI pair", BY_NIBABEL, path)
    for what, suffixes, _, command in _FORMATS:
        if lower.endswith(suffixes):
            return _conversion(what, command, path)
    return None


def _conversion(what: str, command: str, path: Path) -> str:
    stem = path.name.split(".")[0] or "image"
    return f"{what}, which is not supported; convert it: {command.format(name=path.name, stem=stem)}"
