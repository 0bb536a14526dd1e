"""Example inputs for a model: from the user, the data or the model's configuration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from depthcomp.data.batches import Data, first_images
from depthcomp.data.input_kind import IMAGES, VECTORS, first_convolution, input_rank, shape_words
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import CaptureError
from fx_passes.preconditions import as_tensors

__all__ = ["ExampleInputs", "configured_size", "infer_example"]

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One tensor, a tuple of tensors in the order of the forward's arguments, or a dict of arguments."""

USUAL_SIZE = 224  # height and width that most ImageNet networks take


def infer_example(
    model: nn.Module, example_inputs: ExampleInputs | None, data: Data | None, names: InputNames = ONE_IMAGE
) -> tuple[Inputs, Data | None, str]:
    """Return the model's example inputs, the complete data, and a warning where the shape is a guess.

    Args:
        model: the model.
        example_inputs: the user's; None to take one from the data, or to guess.
        data: the data; None for none.
        names: names of the model's inputs.

    Raises:
        CaptureError: the model is not in single precision or not on the CPU, `example_inputs` is no batch of what the
            model's first convolution reads, no convolution tells a shape to guess, or several inputs would be guessed.
        DataError: the data hold no images.
    """
    _require_single_precision_on_cpu(model)
    if example_inputs is not None:
        tensors = as_tensors(names.example(example_inputs))
        found = _several(tensors, names) if names.several else Inputs.of(_images(tensors, names.rank))
        return found, data, ""
    if data is not None:
        images, data = _peek(data, names)
        return images.each(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor), data, ""
    if names.several:
        raise CaptureError(
            f"{type(model).__name__} takes {', '.join(names.names)}, and no synthetic data can stand for several "
            "inputs; pass data="
        )
    size, warning = configured_size(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return Inputs.of(torch.randn(1, *size, generator=generator).to(like)), None, warning


def _require_single_precision_on_cpu(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise CaptureError(
                f"{name} of {type(model).__name__} is on {parameter.device}, but compression works on the CPU; "
                "pass model.cpu()"
            )
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise CaptureError(
                f"{name} of {type(model).__name__} is of {parameter.dtype}, but compression works in torch.float32; "
                "pass model.float()"
            )


def _images(inputs: tuple[Tensor, ...], rank: int) -> Tensor:
    """Return the inputs as one batch of so many dimensions, or of vectors; refuse others."""
    if len(inputs) != 1:
        raise CaptureError(
            f"example_inputs holds {len(inputs)} inputs, but must be one batch of {shape_words(rank)}; pass one tensor"
        )
    images = inputs[0]
    if images.ndim not in (rank, VECTORS) or not len(images):
        raise CaptureError(
            f"example_inputs has shape {tuple(images.shape)}, but must be one batch of {shape_words(rank)}; "
            "x.unsqueeze(0) makes a batch of one"
        )
    _require_dense(images)
    if images.dtype != torch.float32 or not torch.isfinite(images).all():
        raise CaptureError(
            f"example_inputs is of {images.dtype}, but must hold finite torch.float32 images, normalised as for "
            "training"
        )
    return images


def _require_dense(tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise CaptureError(
            f"example_inputs is of {tensor.layout} on {tensor.device}, but must be dense, with values on the CPU"
        )


def _several(tensors: tuple[Tensor, ...], names: InputNames) -> Inputs:
    """Return several inputs as a batch, or refuse them."""
    counts = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if len(set(counts)) > 1 or not counts[0]:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(names.names, tensors, strict=True))
        raise CaptureError(
            f"example_inputs has the shapes {shapes}, but the first dimension of each must be the batch; give one "
            "batch of all inputs"
        )
    for name, tensor in zip(names.names, tensors, strict=True):
        _require_dense(tensor)
        if tensor.is_floating_point() and (tensor.dtype != torch.float32 or not torch.isfinite(tensor).all()):
            raise CaptureError(
                f"{name} in example_inputs is of {tensor.dtype}, but must hold finite torch.float32 values; convert it"
            )
    return Inputs.of(tensors)


def _peek(data: Data, names: InputNames) -> tuple[Inputs, Data]:
    """Return the first image and an iterable that still yields it."""
    if isinstance(data, Iterator):
        data, ahead = itertools.tee(data)
        return first_images(ahead, names=names)[:1], data
    return first_images(data, names=names)[:1], data


def configured_size(model: nn.Module) -> tuple[tuple[int, ...], str]:
    """Return the shape of one input of a model, channels first, and a warning where it is a guess.

    Raises:
        CaptureError: the model's first convolution reads no images, so there is no usual size, or it has none.
    """
    for name in ("pretrained_cfg", "default_cfg"):
        size = (getattr(model, name, None) or {}).get("input_size")
        if size is not None:
            return tuple(size), ""
    conv, rank = first_convolution(model), input_rank(model)
    if conv is None:
        raise CaptureError(
            f"{type(model).__name__} has no convolution; depth compression is for convolutional networks"
        )
    if rank != IMAGES:
        raise CaptureError(
            f"{type(model).__name__} takes {shape_words(rank)}, whose size nothing tells; pass example_inputs or data, "
            'or set model.pretrained_cfg = {"input_size": ...}, the shape of one input'
        )
    size = (conv.in_channels, USUAL_SIZE, USUAL_SIZE)
    return size, (
        f"without example_inputs or data, one image of shape {size} is assumed; pass example_inputs to choose another"
    )
