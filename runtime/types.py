"""Types that rooms share: arrays and what their axes mean, sizes, records of plain types."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of any type and shape; docstrings say which
FloatArray = NDArray[np.floating[Any]]
Image = NDArray[np.float32]  # (I, J, K), intensities
LabelMap = NDArray[np.integer[Any]]  # (I, J, K)
Mask = NDArray[np.bool_]  # (I, J, K)
Flow = NDArray[np.float32]  # (3, I, J, K), voxels of its own grid, from the fixed image into the moving one
Displacement = NDArray[np.float32]  # (I, J, K, 3), RAS mm
Matrix = NDArray[np.float64]  # (4, 4), homogeneous coordinates
Points = NDArray[np.float64]  # (N, 3), RAS mm
Shape = tuple[int, int, int]  # sizes I, J, K in voxels
Record = dict[str, Any]  # plain types, as JSON holds them
