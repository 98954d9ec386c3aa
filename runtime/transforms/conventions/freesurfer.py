"""FreeSurfer: displacement fields as surfa, SynthMorph and mri_synthmorph keep them.

    T(x) = x + s(v)

Numbers are mm in RAS on the fixed image's grid; shape (I, J, K, 1, 3), intent 1006 (displacement vector). ITK from
version 5.4 on converts them to LPS as it reads them; older ones cannot use them.

Source: surfa, ``Warp`` in the format ``disp_ras``; itk::NiftiImageIO, ``ConvertRASDisplacementVectors``.
"""

import numpy as np

from ...geometry.grid import Grid
from .frames import Frame

INTENT = 1006


def frame(start: Grid, end: Grid | None) -> Frame:
    """The constants of a field on `start`."""
    return Frame(start, np.eye(3), np.eye(4))
