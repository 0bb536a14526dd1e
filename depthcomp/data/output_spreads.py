"""Variances of a network's outputs by channel, the units in which errors of outputs are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fx_passes.outputs import tensors_of

__all__ = ["floats_of", "power", "spread_of", "spreads_of"]

Axis = tuple[int, int] | None  # a dimension, and the number of dimensions behind it
LEAST_DEVIATION = 0.01  # of values within 0 and 1: smaller changes of a probability decide nothing
_SHARE_OF_SQUARE = 1e-6  # a variance below this share of the mean square is rounding
_LEAST = 1e-12


def floats_of(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a network's output that hold values, in order."""
    return [part for part in tensors_of(output) if part.is_floating_point() and part.numel()]


def power(values: Tensor) -> Tensor:
    """Return the variance of all values together, or their mean square where they do not vary."""
    return _or_square(values.var(correction=0), values.square().mean())


def spread_of(output: Tensor) -> Tensor:
    """Return the variance of each channel of one batch's output, in a shape that divides it."""
    return spreads_of([output])[0]


def spreads_of(outputs: Iterable[Any]) -> tuple[Tensor, ...]:
    """Return the variances of an original's outputs over batches, for each floating-point tensor.

    Channels are dimension 1 of rows (n, c) and of maps (n, c, h, w). In (n, a, b) the channels are the dimension along
    which variances differ most: dimension 1 of a detector's boxes, dimension 2 of a sequence. Tensors of other shapes
    have one variance.
    """
    seen: list[dict[Axis, _Range]] = []
    for output in outputs:
        parts = floats_of(output)
        seen = seen or [{axis: _Range.none() for axis in _axes(part)} for part in parts]
        for known, part in zip(seen, parts, strict=True):
            for axis in known:
                known[axis] = known[axis].with_values(_by_channel(part.detach(), axis))
    return tuple(_clearest([_shaped(found.variances(), axis) for axis, found in known.items()]) for known in seen)


@dataclass(frozen=True, slots=True)
class _Range:
    """What was seen of the values of each channel, (c,).

    Attributes:
        count: number of values.
        total: their sum.
        squares: the sum of their squares.
        least: the smallest.
        most: the largest.
    """

    count: int
    total: Tensor
    squares: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def none(cls) -> _Range:
        """Return the range before any value is seen."""
        nothing = torch.zeros((), dtype=torch.float64)
        return cls(0, nothing, nothing, nothing + math.inf, nothing - math.inf)

    def with_values(self, values: Tensor) -> _Range:
        """Return the range with more values (c, n)."""
        return _Range(
            self.count + values.shape[1], self.total.to(values.device) + values.sum(1),
            self.squares.to(values.device) + values.square().sum(1),
            torch.minimum(self.least.to(values.device), values.amin(1)),
            torch.maximum(self.most.to(values.device), values.amax(1)),
        )  # fmt: skip

    def variances(self) -> Tensor:
        """Return the variance of each channel, at least what matters of probabilities."""
        square = self.squares / self.count
        variances = _or_square(square - (self.total / self.count).square(), square)
        are_shares = (self.least >= 0) & (self.most <= 1)
        return torch.where(are_shares, variances.clamp_min(LEAST_DEVIATION**2), variances)


def _axes(part: Tensor) -> list[Axis]:
    """Return the dimensions that may be the channels."""
    axes = {2: (1,), 3: (1, 2), 4: (1,), 5: (1,)}.get(part.ndim, ())
    return [(axis, part.ndim - 1 - axis) for axis in axes] or [None]


def _by_channel(part: Tensor, axis: Axis) -> Tensor:
    """Return values by channel, (c, n) in float64; c is 1 where there are no channels."""
    return (part.reshape(1, -1) if axis is None else part.movedim(axis[0], 0).flatten(1)).double()


def _shaped(variances: Tensor, axis: Axis) -> Tensor:
    """Return variances (c,) in a shape that divides the output."""
    return variances.reshape(()) if axis is None else variances.reshape(-1, *[1] * axis[1])


def _clearest(variances: Sequence[Tensor]) -> Tensor:
    """Return the variances that differ most from each other."""
    return max(variances, key=lambda each: float(each.log().var(correction=0)))


def _or_square(variance: Tensor, square: Tensor) -> Tensor:
    """Return a variance, or the mean square where it is rounding."""
    return torch.where(variance > _SHARE_OF_SQUARE * square, variance, square).clamp_min(_LEAST)
