"""A write by index as a function: the form of `tensor[index] = value` that overwrites nothing."""

from typing import Any

from torch import Tensor

__all__ = ["write_index"]


def write_index(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of `tensor` (any shape) with `value` at `index`, which is whatever brackets may hold."""
    written = tensor.clone()
    written[index] = value
    return written
