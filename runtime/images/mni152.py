"""The MNI152 brain that ships inside nilearn: where its files are. nilearn itself is never imported."""

import importlib.metadata
from pathlib import Path

from ..errors import InputError
from ..host.shipped import install_command

NAME = "mni152"
FILE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def mni152_file(kind: str = "t1") -> Path:
    """The skull-stripped T1 image ("t1"), or the grey ("gm") or white ("wm") matter map, 0 to 255, 1 mm, RAS.

    Raises:
        InputError: nilearn is not installed.
    """
    try:
        path = Path(importlib.metadata.distribution("nilearn").locate_file(FILE.format(kind)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError(
            f"{NAME}: got no nilearn with its template brain in this environment, expected nilearn 0.10 or later; "
            f"run: {install_command('nilearn')}"
        )
    return path
