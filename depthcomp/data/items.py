"""Images and labels of an item of users' data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthcomp.errors import DataError

__all__ = ["IMAGE_NAMES", "LABEL_NAMES", "images_of", "labels_of"]

IMAGE_NAMES = ("image", "images", "pixel_values", "x")  # in a dict; else the tensor of most dimensions
LABEL_NAMES = ("label", "labels", "target", "targets", "y")  # in a dict


def images_of(item: Any, argument: str) -> Tensor:
    """Return the images of an item, without its labels.

    Raises:
        DataError: the item holds no tensor of images.
    """
    if isinstance(item, Mapping):
        item = {name: _without_numpy(value) for name, value in item.items()}
        tensors = [value for value in item.values() if isinstance(value, Tensor) and value.ndim >= 3]
        named = [item[name] for name in IMAGE_NAMES if isinstance(item.get(name), Tensor)]
        item = max(named or tensors, key=Tensor.dim, default=item)  # masks may have one dimension less than images
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        item = item[0]
    item = _without_numpy(item)
    if not isinstance(item, Tensor):
        raise DataError(
            f"an item of {argument} holds a {type(item).__name__}, not a tensor of images; "
            "yield x, (x, y) or a dict with the images as a tensor (torchvision's ToTensor makes one)"
        )
    return item


def _without_numpy(value: Any) -> Any:
    """Return an array of real values as a tensor, and anything else as it is."""
    real = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return torch.from_numpy(value) if real else value


def labels_of(item: Any) -> Any:
    """Return the labels of an item; None where it has none."""
    if isinstance(item, Mapping):
        return next((item[name] for name in LABEL_NAMES if name in item), None)
    return item[1] if isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 1 else None
