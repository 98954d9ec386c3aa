"""How a scene is bent before it is seen: once for its anatomy, once more for each of its images."""

import numpy as np
import torch
from torch import Tensor

from train.data.randomness import Randomness, Shape, identity
from train.data.synthetic.levels import blur
from train.data.synthetic.population import Side

LINEAR = 0.02  # rotation, scale and shear
SHIFT = 1.0  # voxels
# Of three smooth fields: widths of their bumps, and standard deviations, both in voxels and both between two numbers.
SCALES = ((32, 60, 0.3, 2.2), (18, 28, 0.3, 1.2), (9, 16, 0.3, 1.3))

OWN_SPACING = (10, 18)  # voxels, of the bumps of deep structures' own motion
SHALLOWEST = 8.0  # voxels below the surface: nothing there moves on its own, at twice as many all of it
FADING = 8.0


def linear(random: Randomness, amount: float) -> Tensor:
    """A 3x3 matrix near the identity: rotation, scale and shear of about `amount`."""
    return random.tensor(np.eye(3) + amount * random.numbers.standard_normal((3, 3)))


def deformation(random: Randomness, shape: Shape) -> Tensor:
    """A displacement (3, I, J, K) in voxels: a small affine map plus three scales, folding rarely if at all."""
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
    """How deep structures move beside the rest of a brain, (3, I, J, K) in voxels; nothing moves near the surface.

    depth: voxels below the surface. ventricle: level function in voxels, from whose border all moves outwards by
    `side.ventricles`, less and less over `FADING` voxels.
    """
    shape = tuple(depth.shape)
    spacing = random.between(*OWN_SPACING)
    inside = ((depth - SHALLOWEST) / SHALLOWEST).clamp(0, 1)
    flow = side.motion * inside * torch.stack([random.smooth(shape, spacing) for _ in range(3)])
    if ventricle is None or not side.ventricles:
        return flow
    level = FADING * torch.tanh(blur(blur(ventricle, 2 / 3), 2 / 3) / FADING)
    return flow - side.ventricles * torch.stack(torch.gradient(level))
