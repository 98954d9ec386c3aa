"""Learn2Reg: ``disp_FFFF_MMMM.nii.gz`` as the challenge's evaluation takes it.

    T(W v) = W( v + s(v) )

Numbers are voxels of the fixed grid; shape (I, J, K, 3), no intent. The evaluation ignores headers and samples the
moving array at v + s(v): its images share one grid. Where ours do not, resample the moving image onto the fixed grid
before handing both to it.

Source: the challenge's evaluation script, which adds the field to an identity grid and calls
``scipy.ndimage.map_coordinates``.
"""

import numpy as np

from ...geometry.grid import Grid
from .frames import Frame

INTENT = 0


def frame(start: Grid, end: Grid | None) -> Frame:
    """The constants of a field on `start`."""
    return Frame(start, start.affine[:3, :3], np.eye(4))
