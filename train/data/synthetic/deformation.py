"""Random deformations of a scene: one for its anatomy and one more for each of its images."""

import numpy as np
import torch
from torch import Tensor

from train.data.randomness import Randomness, Shape, identity, shape_of
from train.data.synthetic.levels import blur
from train.data.synthetic.population import Side

LINEAR = 0.02  # standard deviation of the entries of rotation, scale and shear
SHIFT = 1.0  # standard deviation, voxels
# Of each of three smooth fields: least and largest width of the bumps, least and largest standard deviation, voxels.
SCALES = ((32, 60, 0.3, 2.2), (18, 28, 0.3, 1.2), (9, 16, 0.3, 1.3))

OWN_SPACING = (10, 18)  # least and largest width of the bumps of deep structures' own motion, voxels
SHALLOWEST = 8.0  # depth in voxels where own motion begins; at twice the depth it is complete
FADING = 8.0  # voxels over which the displacement about a ventricle fades


def linear(random: Randomness, amount: float) -> Tensor:
    """Return a random 3x3 matrix near the identity: rotation, scale and shear of about `amount`."""
    return random.tensor(np.eye(3) + amount * random.numbers.standard_normal((3, 3)))


def deformation(random: Randomness, shape: Shape) -> Tensor:
    """Return a random displacement (3, I, J, K) in voxels that folds rarely if at all.

    It is the sum of a small affine map and smooth fields of three scales.
    """
    centred = identity(shape, random.device) - random.tensor(np.array(shape) / 2).view(3, 1, 1, 1)
    matrix = linear(random, LINEAR) - torch.eye(3, device=random.device)
    flow = torch.einsum("ab,bijk->aijk", matrix, centred)
    flow += random.tensor(random.numbers.normal(0, SHIFT, 3)).view(3, 1, 1, 1)
    strength = random.between(0.4, 1.0)
    for narrowest, widest, smallest, largest in SCALES:
        spacing, deviation = random.between(narrowest, widest), strength * random.between(smallest, largest)
        flow += deviation * torch.stack([random.smooth(shape, spacing) for _ in range(3)])
    return flow


def own_motion(random: Randomness, depth: Tensor, ventricle: Tensor | None, side: Side) -> Tensor:
    """Return a displacement (3, I, J, K) in voxels of deep structures relative to the rest of the brain.

    Args:
        random: source of randomness.
        depth: depth below the surface, voxels, (I, J, K); nothing moves near the surface.
        ventricle: level function, voxels; its border moves outwards by `side.ventricles`, and the tissue around it less
            and less over `FADING` voxels. None: no ventricle.
        side: the image that shows the motion.
    """
    shape = shape_of(depth)
    spacing = random.between(*OWN_SPACING)
    inside = ((depth - SHALLOWEST) / SHALLOWEST).clamp(0, 1)
    flow = side.motion * inside * torch.stack([random.smooth(shape, spacing) for _ in range(3)])
    if ventricle is None or not side.ventricles:
        return flow
    level = FADING * torch.tanh(blur(blur(ventricle, 2 / 3), 2 / 3) / FADING)
    return flow - side.ventricles * torch.stack(torch.gradient(level))
