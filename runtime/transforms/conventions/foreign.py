"""Transforms of other tools that are not read: recognised by content or name, with the command that converts them."""

import re
from pathlib import Path

from ...images.formats.foreign import foreign_image

ELASTIX = re.compile(rb"^\s*\(Transform\s", re.MULTILINE)
NITRANSFORMS = "nitransforms: linear.load('{name}', fmt='{form}').to_filename('{stem}.tfm', fmt='itk')"
_BY_CONTENT = (  # (what it holds, what it is, what to do)
    (
        ELASTIX,
        "a parameter file of elastix",
        "convert it to a field: transformix -def all -tp {name} -out FOLDER, and give its deformationField",
    ),
    (
        re.compile(rb"^\s*MNI Transform File"),
        "a transform of MINC or MNI (.xfm)",
        "convert a linear one: lta_convert --inmni {name} --outlta {stem}.lta --src MOVING --trg FIXED",
    ),
    (
        re.compile(rb"^#\s*3dAllineate matrices"),
        "AFNI's matrix of 3dAllineate",
        "convert it with " + NITRANSFORMS.replace("{form}", "afni"),
    ),
)
_BY_NAME = (  # (suffix, what it is, what to do)
    (".m3z", "a morph of FreeSurfer", "convert it: mri_warp_convert --inm3z {name} --outitk {stem}.nii.gz"),
    (
        ".dat",
        "a register.dat of FreeSurfer",
        "convert it: lta_convert --inreg {name} --outlta {stem}.lta --src MOVING --trg FIXED",
    ),
    (".1d", "a matrix of AFNI", "convert it with " + NITRANSFORMS.replace("{form}", "afni")),
    (".x5", "a transform in X5", "convert it with nitransforms: .to_filename('{stem}.h5', fmt='itk')"),
)


def foreign_transform(path: Path, beginning: bytes) -> str | None:
    """Name a format that is not read, and the command that converts it to ITK's; None: unknown.

    Args:
        path: the file.
        beginning: its first bytes, as they are stored.
    """
    words = {"name": path.name, "stem": path.name.split(".")[0] or "transform"}
    for holds, what, remedy in _BY_CONTENT:
        if holds.search(beginning):
            return f"{what}, which is not supported; {remedy.format(**words)}"
    for suffix, what, remedy in _BY_NAME:
        if path.name.lower().endswith(suffix):
            return f"{what}, which is not supported; {remedy.format(**words)}"
    return foreign_image(path, beginning)
