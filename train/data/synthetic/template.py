"""A template brain as the maps from which anatomies are generated."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from runtime.errors import InputError
from runtime.geometry.grid import bounding_box, closest_ras, reorient_array
from runtime.images.intensity import PercentileRule
from runtime.images.mni152 import NAME, mni152_file
from runtime.images.volume import read_volume
from runtime.types import Array, Shape
from train.data.synthetic.deep_structures import deep_levels
from train.data.volumes import content_digest

FULL = 255.0
DEEPEST = 40.0
_MARGIN = 4


@dataclass(frozen=True)
class Template:
    """A brain cropped to its foreground, in closest RAS order.

    Attributes:
        maps: (4, I, J, K) float32: the image in [0, 1], the shares of grey and of white matter, and the depth below the
            surface, 1 at `DEEPEST` voxels and more.
        levels: (1 + N, I, J, K) float32, voxels: the distance from the brain, 0 inside, and the level functions of the
            structures of `DEEP_STRUCTURES`.
    """

    maps: Tensor
    levels: Tensor

    @property
    def digest(self) -> str:
        """The hash of the maps."""
        return content_digest([self.maps.cpu().numpy()])

    @property
    def shape(self) -> Shape:
        _, i, j, k = self.maps.shape
        return i, j, k


def load_template(name: str | Path, device: torch.device | str = "cpu") -> Template:
    """Load a template.

    Args:
        name: "mni152", which ships with nilearn together with its tissue maps; or the file of a skull-stripped volume,
            whose tissues are found by clustering its intensities.
        device: the device for the maps.

    Raises:
        InputError: the file is missing or is not a volume with a background of 0.
    """
    if str(name) == NAME:
        image, grey, white = (_oriented(mni152_file(kind)) for kind in ("t1", "gm", "wm"))
        grey, white = grey / FULL, white / FULL
        image = PercentileRule().normalise(image, "template")
    else:
        image = PercentileRule().normalise(_oriented(Path(name)), "template")
        grey, white = _tissues(image)
    depth = np.minimum(distance_transform_edt(image > 0) / DEEPEST, 1)
    first, last = bounding_box(image > 0)
    outside = distance_transform_edt(image <= 0)
    levels = (outside, *deep_levels(grey, white, (np.array(first), np.array(last))))
    box = tuple(slice(max(a - _MARGIN, 0), b + _MARGIN + 1) for a, b in zip(first, last, strict=True))
    stacks = (np.stack([volume[box].astype(np.float32) for volume in v]) for v in ((image, grey, white, depth), levels))
    return Template(*(torch.from_numpy(stack).to(device) for stack in stacks))


def _oriented(path: Path) -> Array:
    volume = read_volume(path, "template")
    return reorient_array(volume.data, *closest_ras(volume.grid.affine))


def _tissues(image: Array) -> tuple[Array, Array]:
    """Return shares of grey and white matter from the middle and the brightest of three intensity clusters."""
    brain = image[image > 0]
    if len(np.unique(brain)) < 3:
        raise InputError("template: has fewer than three intensities; give a T1-weighted scan, skull-stripped")
    centres, _ = kmeans2(np.sort(brain)[:: max(len(brain) // 20_000, 1)], np.quantile(brain, [0.1, 0.5, 0.9]))
    fluid, grey, white = np.sort(centres)
    white_share = np.clip((image - grey) / (white - grey), 0, 1)
    return np.clip((image - fluid) / (grey - fluid), 0, 1) - white_share, white_share
