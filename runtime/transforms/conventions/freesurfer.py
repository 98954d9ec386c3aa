"""FreeSurfer: displacement fields in the format of surfa, SynthMorph and mri_synthmorph.

    T(x) = x + s(v)

Numbers are mm in RAS on the fixed image's grid; shape (I, J, K, 1, 3), intent 1006 (displacement vector). ITK from
version 5.4 on converts them to LPS when reading; older versions cannot use them.

Source: surfa, ``Warp`` in the format ``disp_ras``; itk::NiftiImageIO, ``ConvertRASDisplacementVectors``.
"""

import numpy as np

from ...geometry.grid import Grid
from .frames import Frame

INTENT = 1006


def frame(start: Grid, end: Grid | None) -> Frame:
    """Return the constants of a field on `start`."""
    return Frame(start, np.eye(3), np.eye(4))
