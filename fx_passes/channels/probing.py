"""Dependence of an operator's output channels on those of an input, found by running the operator.

An input gets NaN in some of its channels. What becomes NaN in the output depends on them. A channel is told apart from
all others by the bits of its number, so that 2 log2(c) runs are enough for c channels. Where an operator only moves
values, one run with the numbers themselves is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fx_passes.channels.layout import Ids, Layout

__all__ = ["MixedChannelsError", "dependence", "moved"]

NONE = -1


class MixedChannelsError(Exception):
    """A channel of the output depends on several channels of one input, or that cannot be found out."""


def dependence(run: Callable[[Tensor], Tensor], value: Tensor, layout: Layout) -> tuple[int, Ids] | None:
    """Return the axis of channels in an operator's output, and the channel of the input that each depends on.

    Channels that depend on none of the input are -1.

    Args:
        run: the operator, as a function of one of its inputs.
        value: a value of this input, without NaN in what the operator makes of it.
        layout: the input's channels, two or more different ones.

    Returns:
        None where the output depends on no channel of the input.

    Raises:
        MixedChannelsError: the output has no axis along which each channel depends on at most one of the input.
    """
    names, numbers = np.unique(layout.ids, return_inverse=True)
    codes, touched = (np.zeros((), dtype) for dtype in (np.int64, bool))
    for bit in range(int(len(names) - 1).bit_length()):
        with_bit, without = (_hit(run, value, layout.axis, (numbers >> bit & 1) == side) for side in (1, 0))
        codes = codes + (with_bit.astype(np.int64) << bit)
        touched = touched | with_bit | without
        if (with_bit & without).any():
            raise MixedChannelsError
    if not touched.any():
        return None
    axis, found = _along_an_axis(np.where(touched, codes, NONE), likely=layout.axis)
    return axis, np.where(found == NONE, NONE, names[found])


def moved(run: Callable[[Tensor], Tensor], value: Tensor, layout: Layout) -> tuple[int, Ids]:
    """Return the axis of channels in the output of an operator that only moves values, and the channels there.

    Args:
        run: the operator, as a function of one of its inputs.
        value: a value of this input; its numbers do not matter.
        layout: the input's channels.

    Raises:
        MixedChannelsError: the output has no axis along which each channel is one of the input.
    """
    named = torch.empty_like(value, dtype=torch.int64).copy_(_along(value, layout.axis, layout.ids))  # strides stay
    try:
        codes = run(named).cpu().numpy()
    except Exception as error:  # an operator may refuse integers in any way
        raise MixedChannelsError from error
    return _along_an_axis(codes, likely=layout.axis)


def _hit(run: Callable[[Tensor], Tensor], value: Tensor, axis: int, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where the output is NaN once some channels of the input are."""
    poisoned = value.masked_fill(_along(value, axis, which), torch.nan)
    try:
        found: NDArray[np.bool_] = run(poisoned).isnan().cpu().numpy()
    except Exception as error:  # an operator may refuse NaN in any way
        raise MixedChannelsError from error
    return found


def _along(value: Tensor, axis: int, of_channels: NDArray[Any]) -> Tensor:
    """Return an array over the channels (c,) in a shape that broadcasts along an axis of `value`."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return torch.from_numpy(of_channels).reshape(shape).to(value.device)


def _along_an_axis(codes: NDArray[np.int64], likely: int) -> tuple[int, Ids]:
    """Return the axis along which codes differ, the likely one where none do, and the code at each place along it."""
    columns = dict(_columns(codes))
    differing = [axis for axis, found in columns.items() if len(np.unique(found)) > 1]
    axis = differing[0] if differing else likely
    if axis not in columns:
        raise MixedChannelsError
    return axis, columns[axis]


def _columns(codes: NDArray[np.int64]) -> Iterator[tuple[int, Ids]]:
    """Yield the axes along which each place has only one code, but the batch's, with these codes."""
    for axis in range(1, codes.ndim):
        others = tuple(other for other in range(codes.ndim) if other != axis)
        highest = codes.max(axis=others)
        lowest = np.where(codes == NONE, np.iinfo(np.int64).max, codes).min(axis=others)
        if ((highest == lowest) | (highest == NONE)).all():
            yield axis, highest
