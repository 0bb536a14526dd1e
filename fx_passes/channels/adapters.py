"""Operators with sizes or places of channels among their arguments, brought to fewer channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from fx_passes.channels.layout import Layout, Layouts
from fx_passes.channels.makers import Mask

__all__ = ["ADAPTERS", "Kept"]

Kept = Callable[[Layout], Mask]
"""Function that returns which places of a layout are kept."""

Adapter = Callable[[fx.Node, Layout, Layouts, Kept], None]
"""Function that changes a node in place; it takes the channels that the node reads and makes."""


def _split(node: fx.Node, read: Layout, made: Layouts, kept: Kept) -> None:
    """Let parts have the sizes that are left of them."""
    parts = [part for part in made if isinstance(part, Layout)] if isinstance(made, tuple) else []
    if parts and all(part.axis == read.axis for part in parts):
        sizes = [int(kept(part).sum()) for part in parts]
        node.op, node.target, node.args, node.kwargs = (
            "call_function",
            torch.split,
            (node.args[0], sizes, read.axis),
            {},
        )


def _index(node: fx.Node, read: Layout, made: Layouts, kept: Kept) -> None:
    """Let a range of channels begin and end at those that are left."""
    index: Any = node.args[1]
    part = index[read.axis] if isinstance(index, tuple) and len(index) > read.axis else None
    plain = isinstance(index, tuple) and Ellipsis not in index and None not in index
    if isinstance(part, slice) and plain and part.step in (None, 1) and not _is_computed(part):
        start, stop, _ = part.indices(len(read.ids))
        before = np.concatenate([[0], np.cumsum(kept(read))])
        moved = slice(int(before[start]), int(before[stop]))
        node.args = (node.args[0], (*index[: read.axis], moved, *index[read.axis + 1 :]))


def _reshape(node: fx.Node, read: Layout, made: Layouts, kept: Kept) -> None:
    """Let a written size of the axis of channels be the number of those that are left."""
    source, *rest = node.args
    together = len(rest) == 1 and isinstance(rest[0], tuple | list)
    sizes: list[Any] = list(rest[0]) if together else rest  # type: ignore[arg-type]
    if isinstance(made, Layout) and isinstance(sizes[made.axis], int) and sizes[made.axis] != -1:
        sizes[made.axis] = int(kept(made).sum())
        node.args = (source, sizes) if together else (source, *sizes)


def _is_computed(part: slice) -> bool:
    return any(isinstance(end, fx.Node) for end in (part.start, part.stop))


ADAPTERS: Mapping[Any, Adapter] = {
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"), _split),
    **dict.fromkeys((torch.reshape, "reshape", "view", "expand"), _reshape),
    operator.getitem: _index,
}
"""What to change in a function or method, by its target."""
