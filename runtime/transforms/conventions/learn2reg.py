"""Learn2Reg: ``disp_FFFF_MMMM.nii.gz`` as read by the challenge's evaluation.

    T(W v) = W( v + s(v) )

Numbers are voxels of the fixed grid; shape (I, J, K, 3), no intent. The evaluation ignores headers and samples the
moving array at v + s(v), so both images must share one grid. If they do not, resample the moving image onto the fixed
grid first.

Source: the challenge's evaluation script, which adds the field to an identity grid and calls
``scipy.ndimage.map_coordinates``.
"""

import numpy as np

from ...geometry.grid import Grid
from .frames import Frame

INTENT = 0


def frame(start: Grid, end: Grid | None) -> Frame:
    """Return the constants of a field on `start`."""
    return Frame(start, start.affine[:3, :3], np.eye(4))
