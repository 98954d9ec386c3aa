"""Transforms in the files of other tools; each convention is handled here and nowhere else.

    from runtime.transforms import Space, read_transform, write_transform

`formats` pairs formats with readers and writers; one module for each convention holds its formula and its source.
"""

from .conventions.fsl import check_zooms
from .direction import DirectionError, check_direction
from .files import file_name, read_transform, tolerance_mm, verify_transform, write_transform, write_verified
from .formats import CONVENTIONS, needs_start
from .link import Link, ReadLink
from .spaces import ConventionError, ImagesNeededError, Space, TransformFile

__all__ = [
    "CONVENTIONS",
    "ConventionError",
    "DirectionError",
    "ImagesNeededError",
    "Link",
    "ReadLink",
    "Space",
    "TransformFile",
    "check_direction",
    "check_zooms",
    "file_name",
    "needs_start",
    "read_transform",
    "tolerance_mm",
    "verify_transform",
    "write_transform",
    "write_verified",
]
