"""The MNI152 brain that ships inside nilearn. Its files are located without importing nilearn."""

import importlib.metadata
from os import PathLike
from pathlib import Path
from typing import cast

from ..errors import InputError
from ..host.shipped import install_command

NAME = "mni152"
FILE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def mni152_file(kind: str = "t1") -> Path:
    """Return the file of the skull-stripped T1 image ("t1") or the grey ("gm") or white ("wm") matter map.

    The values are 0 to 255, the voxels 1 mm, in RAS order.

    Raises:
        InputError: nilearn is not installed.
    """
    path: Path | None
    try:
        found = importlib.metadata.distribution("nilearn").locate_file(FILE.format(kind))
        path = Path(cast(PathLike[str], found))  # an installed package is a folder, not a zip archive
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError(
            f"{NAME}: got no nilearn with its template brain in this environment, expected nilearn 0.10 or later; "
            f"run: {install_command('nilearn')}"
        )
    return path
