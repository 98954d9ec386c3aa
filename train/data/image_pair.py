"""Two images to be registered in training or validation, with their label maps if known."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

FIRST_DEEP_LABEL = 1000  # in generated label maps: the ventricles; larger labels are deep structures


def is_deep(labels: Tensor) -> Tensor:
    """Return a boolean mask of the ventricles and deep structures of a generated label map of any shape."""
    return labels >= FIRST_DEEP_LABEL


@dataclass(frozen=True)
class ImagePair:
    """A pair of images on one grid, with both label maps or none.

    Attributes:
        moving, fixed: images (I, J, K), float32 in [0, 1].
        moving_labels, fixed_labels: label maps (I, J, K), int32, 0 = background; both or neither.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.moving_labels is None) != (self.fixed_labels is None):
            raise ValueError("label maps: got one, expected both or none")

    @property
    def labelled(self) -> bool:
        return self.moving_labels is not None

    def swapped(self) -> "ImagePair":
        """Return the pair with moving and fixed exchanged."""
        return ImagePair(self.fixed, self.moving, self.fixed_labels, self.moving_labels)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of the pair: moving, fixed and, if present, moving labels and fixed labels."""
        return tuple(tensor for tensor in vars(self).values() if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "ImagePair":
        """Return the pair with `change`, such as a move to another device, applied to every tensor."""
        return ImagePair(*map(change, self.tensors()))
