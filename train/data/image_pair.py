"""Two images to be registered in training or validation, and their label maps where they are known."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

FIRST_DEEP_LABEL = 1000  # of generated label maps: the ventricles, and the deep structures above


def is_deep(labels: Tensor) -> Tensor:
    """Where a generated label map (any shape) shows a ventricle or a deep structure, as booleans."""
    return labels >= FIRST_DEEP_LABEL


@dataclass(frozen=True)
class ImagePair:
    """Images (I, J, K), float32 in [0, 1], on one grid; label maps (I, J, K), int32, 0 = nothing, both or none."""

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.moving_labels is None) != (self.fixed_labels is None):
            raise ValueError("expected both label maps or none")

    @property
    def labelled(self) -> bool:
        return self.moving_labels is not None

    def swapped(self) -> "ImagePair":
        """The same two images the other way round."""
        return ImagePair(self.fixed, self.moving, self.fixed_labels, self.moving_labels)

    def tensors(self) -> tuple[Tensor, ...]:
        """Those there are: moving, fixed, moving labels, fixed labels."""
        return tuple(tensor for tensor in vars(self).values() if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "ImagePair":
        """`change` applied to every tensor there is, such as a move to another device."""
        return ImagePair(*map(change, self.tensors()))
