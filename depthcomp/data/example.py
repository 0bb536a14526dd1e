"""Example inputs for a model: from the user, the data or the model's configuration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from depthcomp.data.batches import Data, first_images
from depthcomp.data.input_kind import IMAGES, VECTORS, first_convolution, input_rank, shape_words
from depthcomp.errors import CaptureError
from fx_passes.preconditions import as_tensors

__all__ = ["configured_size", "infer_example"]

USUAL_SIZE = 224  # height and width that most ImageNet networks take


def infer_example(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor] | None, data: Data | None
) -> tuple[Tensor, Data | None, str]:
    """Return the model's one example input, the complete data, and a warning where the shape is a guess.

    Raises:
        CaptureError: the model is not in single precision or not on the CPU, `example_inputs` is no batch of what the
            model's first convolution reads, or no convolution tells a shape to guess.
        DataError: the data hold no images.
    """
    _require_single_precision_on_cpu(model)
    if example_inputs is not None:
        return _images(as_tensors(example_inputs), input_rank(model)), data, ""
    if data is not None:
        images, data = _peek(data, input_rank(model))
        return images.float(), data, ""
    size, warning = configured_size(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *size, generator=generator).to(like), None, warning


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
            f"example_inputs holds {len(inputs)} inputs, but must be one batch of {shape_words(rank)}; "
            "wrap a model with more inputs in a module that takes only that batch"
        )
    images = inputs[0]
    if images.ndim not in (rank, VECTORS) or not len(images):
        raise CaptureError(
            f"example_inputs has shape {tuple(images.shape)}, but must be one batch of {shape_words(rank)}; "
            "x.unsqueeze(0) makes a batch of one"
        )
    if images.dtype != torch.float32 or not torch.isfinite(images).all():
        raise CaptureError(
            f"example_inputs is of {images.dtype}, but must hold finite torch.float32 images, normalised as for "
            "training"
        )
    return images


def _peek(data: Data, rank: int) -> tuple[Tensor, Data]:
    """Return the first image, as a batch of so many dimensions, and an iterable that still yields it."""
    if isinstance(data, Iterator):
        data, ahead = itertools.tee(data)
        return first_images(ahead, rank)[:1], data
    return first_images(data, rank)[:1], data


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
