"""Checks of the inputs in users' data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import DataError

__all__ = ["as_batch", "as_tensor", "require_examples", "require_values"]


def as_batch(parts: Sequence[Any], example: Inputs, argument: str, names: InputNames) -> Inputs:
    """Return the inputs of an item as a batch, typed and placed like an example.

    Args:
        parts: the inputs; each may lack the dimension of the batch.
        example: the example inputs.
        argument: the user's name for the data, for the messages.
        names: names of the inputs.

    Raises:
        DataError: an input has another shape or type than the example, or values that are not finite.
    """
    tensors = [as_tensor(part, argument) for part in parts]
    if len(tensors) != len(example.tensors):
        raise DataError(
            f"an item of {argument} holds {len(tensors)} inputs, and the model takes {len(example.tensors)}"
        )
    pairs = list(zip(tensors, example.tensors, strict=True))
    batch = Inputs.of([t.unsqueeze(0) if t.ndim == like.ndim - 1 else t for t, like in pairs])
    for name, tensor, like in zip(names.names or ("",), batch.tensors, example.tensors, strict=False):
        _require_shape(tensor, like, name if names.several else "images", argument)
        if names.several:
            _require_type(tensor, like, name, argument)
    require_examples(batch, names, argument)
    require_values(batch, argument)
    return Inputs.of([t.to(like.device, like.dtype) for t, like in zip(batch.tensors, example.tensors, strict=True)])


def _require_shape(tensor: Tensor, like: Tensor, what: str, argument: str) -> None:
    """Refuse an input of another shape than the example's."""
    if tensor.ndim != like.ndim or tensor.shape[1:] != like.shape[1:]:
        raise DataError(
            f"{argument} holds {what} of shape {tuple(tensor.shape[1:])}, but the model was captured for "
            f"{tuple(like.shape[1:])}; resize the data, or give the model their shape with example_inputs or with "
            "input_size in its pretrained_cfg"
        )


def _require_type(tensor: Tensor, like: Tensor, what: str, argument: str) -> None:
    """Refuse an input of another type than the example's; real numbers of any precision are alike."""
    if tensor.dtype != like.dtype and not (tensor.is_floating_point() and like.is_floating_point()):
        raise DataError(
            f"{argument} holds {what} of {tensor.dtype}, but the model was captured for {like.dtype}; convert one of "
            "them"
        )


def as_tensor(part: Any, argument: str) -> Tensor:
    """Return a part of an item as a tensor: a tensor, an array or a number.

    Raises:
        DataError: it is none of these, an array of objects, or a tensor that is sparse or holds no values.
    """
    if isinstance(part, np.ndarray | np.generic) and part.dtype.kind not in "biufc":
        raise DataError(f"an item of {argument} holds an array of {part.dtype}; give numbers")
    if isinstance(part, np.ndarray | np.generic | int | float):
        return torch.as_tensor(part)
    if not isinstance(part, Tensor):
        raise DataError(
            f"an item of {argument} holds a {type(part).__name__} as an input; networks of several inputs take "
            "tensors, arrays or numbers, images normalised as for training"
        )
    if part.layout is not torch.strided or part.is_meta:
        kind = "on the meta device, without values" if part.is_meta else f"of layout {part.layout}"
        raise DataError(f"an item of {argument} holds a tensor {kind}; give dense tensors on the CPU")
    return part


def require_examples(batch: Inputs, names: InputNames, argument: str) -> None:
    """Refuse inputs that are not of equally many examples.

    Raises:
        DataError: their first dimensions differ, or one has none.
    """
    counts = [len(tensor) if tensor.ndim else None for tensor in batch.tensors]
    if len(set(counts)) > 1 or None in counts:
        found = ", ".join(f"{name} {count}" for name, count in zip(names.names, counts, strict=False))
        raise DataError(
            f"the inputs of an item of {argument} are of different numbers of examples ({found}); give each input the "
            "batch as its first dimension"
        )


def require_values(images: Inputs, argument: str) -> None:
    """Refuse images of integers, and images with values that are not finite; several inputs may be integers.

    Raises:
        DataError: the images hold integers, NaN or infinite values.
    """
    if len(images.tensors) == 1 and not images.real.is_floating_point():
        raise DataError(
            f"{argument} holds images of {images.real.dtype}, but must hold floating-point images, normalised as for "
            "training; make them with torchvision's ToTensor and Normalize"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in images.tensors):
        raise DataError(f"{argument} holds NaN or infinite values; clean the data first")
