"""Pictures of a registered validation pair, for inspection during training."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from runtime.host.files.whole_files import atomic_path
from runtime.images.pictures.preview import draw_preview
from train.data.image_pair import ImagePair
from train.model.fields import warp

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "pictures"


def write_picture(folder: Path, step: int, pair: ImagePair, flow: Tensor) -> "Image":
    """Draw fixed, moving and warped image, both differences and the warped grid into pictures/step_N.png.

    Args:
        folder: folder of the run; the folder for pictures is created in it.
        pair: images (I, J, K) on the CPU.
        flow: (3, I, J, K), voxels, on the CPU.

    Returns:
        The picture.
    """
    warped = warp(pair.moving[None, None], flow[None])[0, 0]
    picture = draw_preview(pair.fixed.numpy(), pair.moving.numpy(), warped.numpy(), flow.numpy())
    path = folder / FOLDER / f"step_{step:07d}.png"
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG")
    return picture
