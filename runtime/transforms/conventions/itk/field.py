"""ITK and ANTs: displacement fields as NIfTI, ``...Warp.nii.gz``.

    T(x) = x + diag(-1, -1, 1) s(v)

Numbers are mm in LPS, the axes of DICOM, on the fixed image's grid; shape (I, J, K, 1, 3), intent 1007 (vector).
ITK has no sheared grids: a field on one is written, but ITK refuses it.

Source: itk::DisplacementFieldTransform; itk::NiftiImageIO for intent 1007, which it never converts; ANTs' wiki,
"ANTs transform concepts and file formats".
"""

import numpy as np

from ....geometry.grid import Grid
from ..frames import LPS, Frame

INTENT = 1007


def frame(start: Grid, end: Grid | None) -> Frame:
    """Return the constants of a field on `start`."""
    return Frame(start, np.diag(LPS), np.eye(4))
