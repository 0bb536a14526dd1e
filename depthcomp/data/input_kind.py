"""Kind of the inputs that a network reads, as its first convolution tells: images, signals, volumes."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["IMAGES", "VECTORS", "first_convolution", "input_rank", "shape_words"]

VECTORS, IMAGES = 2, 4  # dimensions of a batch
_SHAPES = {
    VECTORS: "vectors (n, k)", 3: "signals (n, c, length)", IMAGES: "images (n, c, h, w)",
    5: "volumes (n, c, depth, h, w)",
}  # fmt: skip


def first_convolution(model: nn.Module) -> _ConvNd | None:
    """Return the first convolution of a model, of any number of dimensions; None where there is none."""
    return next((layer for layer in model.modules() if isinstance(layer, _ConvNd)), None)


def input_rank(model: nn.Module) -> int:
    """Return how many dimensions a batch of a model's inputs has: four, as of images, where nothing tells.

    The first convolution tells, and in a captured graph the input itself.

    Example:
        >>> input_rank(nn.Sequential(nn.Conv1d(1, 8, 9), nn.ReLU()))
        3
    """
    for node in model.graph.find_nodes(op="placeholder") if isinstance(model, fx.GraphModule) else ():
        if "tensor_meta" in node.meta:
            return len(node.meta["tensor_meta"].shape)
    first = first_convolution(model)
    return IMAGES if first is None else 2 + len(first.kernel_size)


def shape_words(rank: int) -> str:
    """Return words for a batch of so many dimensions, with its shape."""
    return _SHAPES[rank]
