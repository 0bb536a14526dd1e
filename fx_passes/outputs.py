"""Tensors in outputs of networks, and the comparison of a graph's with its model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from depthcomp_errors import CaptureError
from fx_passes.output_records import OutputTuple

__all__ = ["noise_like", "require_comparable", "require_equal", "tensors_of"]

_SEED = 0
_LEAST_SCALE = 1e-12  # outputs below it in size are compared as they are


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors in a forward's output in order, also from containers and dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, OutputTuple):
            found += tensors_of(list(leaf))
        elif isinstance(leaf, Mapping):
            found += tensors_of(list(dict.values(leaf)) if isinstance(leaf, dict) else list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return found


def noise_like(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return reproducible random inputs with the shapes and types of `inputs`; inputs that are not floating point stay.

    An example of zeros, passed through layers without biases, would agree with any graph.
    """
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(
        torch.randn(x.shape, generator=generator).to(x.device, x.dtype) if x.is_floating_point() else x for x in inputs
    )


def require_comparable(name: str, outputs: Sequence[Tensor]) -> None:
    """Refuse outputs that hold no values, or values that are not finite.

    Raises:
        CaptureError: the outputs of the model `name` cannot be compared with its graph's.
    """
    if not any(output.numel() for output in outputs):
        raise CaptureError(
            f"{name} returns no tensor with values on the example inputs, so its graph cannot be compared with it; "
            "return tensors, or a tuple, list, dict or dataclass of them"
        )
    for index, output in enumerate(outputs):
        if not torch.isfinite(output).all():
            raise CaptureError(
                f"output {index} of {name} holds NaN or infinite values on the example inputs; "
                "pass images that are normalised as for training, check the statistics of its norms, and return finite "
                "scores"
            )


def require_equal(name: str, expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> None:
    """Refuse a graph whose outputs differ from its model's.

    Raises:
        CaptureError: outputs differ in number, in shape, or by more than `tolerance` relative to the largest value.
    """
    wanted, had = ([tuple(output.shape) for output in outputs] for outputs in (expected, found))
    if wanted != had:
        raise CaptureError(
            f"the captured graph of {name} returns tensors of shape {had} where the model returns {wanted}; "
            + _likely_causes(name)
        )
    for index, pair in enumerate(zip(expected, found, strict=True)):
        error = _difference(*map(_as_doubles, pair))
        if not error <= tolerance:
            raise CaptureError(
                f"the captured graph of {name} differs from the model by {error:.2g} (relative) in output {index}; "
                + _likely_causes(name)
            )


def _likely_causes(name: str) -> str:
    return (
        f"the likely cause is that the forward of {name} draws random numbers or keeps state, writes in place (also "
        "by +=) to a tensor that is read again under another name, takes statistics of the batch in evaluation mode, "
        "or switches autocast on; take that out of the forward, or capture a part of the network without it"
    )


def _difference(want: Tensor, have: Tensor) -> float:
    if not want.numel():
        return 0.0
    return float((want - have).abs().max() / want.abs().max().clamp_min(_LEAST_SCALE))


def _as_doubles(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()
