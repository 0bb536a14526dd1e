"""A network without some of its channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fx_passes.channels.adapters import ADAPTERS, Kept
from fx_passes.channels.layout import Layout, Layouts
from fx_passes.channels.makers import Mask, maker_of, sliced
from fx_passes.operators import NORMS

__all__ = ["describe_without", "narrow_node", "without"]


def without(value: Any, layout: Layouts, kept: Kept) -> Any:
    """Return a tensor, or several, without the channels that are not kept; a value of no layout as it is."""
    if isinstance(layout, tuple):
        return tuple(without(part, one, kept) for part, one in zip(value, layout, strict=True))
    return value if layout is None else sliced(value, layout.axis, kept(layout))


def narrow_node(root: nn.Module, node: fx.Node, read: Layouts, made: Layouts, kept: Kept) -> None:
    """Bring a node to fewer channels, in place; no other node may call its layer.

    Args:
        root: the module that holds the node's layer.
        node: the node.
        read: the channels that its first input had.
        made: the channels that its result had.
        kept: returns which of them are left.
    """
    layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    maker = maker_of(layer)
    if layer is not None and maker is not None:
        before, after = (kept(each) if isinstance(each, Layout) else None for each in (read, made))
        along = isinstance(read, Layout) and isinstance(made, Layout) and read.axis == made.axis
        maker.narrow(layer, before if along else None, after)  # channels along another axis all stay
    elif layer is not None and isinstance(read, Layout) and not (isinstance(layer, NORMS) and read.axis != 1):
        _narrow_channels(layer, kept(read))
    elif isinstance(read, Layout) and node.target in ADAPTERS:
        ADAPTERS[node.target](node, read, made, kept)


def describe_without(node: fx.Node, made: Layouts, kept: Kept) -> None:
    """Let the shape that a node's meta data tell be without the channels that are not kept."""
    meta = node.meta.get("tensor_meta")
    if meta is not None:
        node.meta["tensor_meta"] = _described(meta, made, kept)


def _described(meta: Any, made: Layouts, kept: Kept) -> Any:
    if isinstance(made, tuple):
        return type(meta)(_described(part, one, kept) for part, one in zip(meta, made, strict=True))
    if made is None:
        return meta
    shape = (*meta.shape[: made.axis], int(kept(made).sum()), *meta.shape[made.axis + 1 :])
    return meta._replace(shape=torch.Size(shape))


def _narrow_channels(layer: nn.Module, kept: Mask) -> None:
    """Remove channels of a layer that computes each one by itself: from all tensors and numbers of their size."""
    for module in layer.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: _of_channels(tensor, kept) for name, tensor in tensors.items()})
        numbers = [name for name, value in vars(module).items() if type(value) is int and value == len(kept)]
        vars(module).update(dict.fromkeys(numbers, int(kept.sum())))


def _of_channels(tensor: Any, kept: Mask) -> Any:
    axes = [axis for axis, size in enumerate(tensor.shape) if size == len(kept)] if isinstance(tensor, Tensor) else []
    return sliced(tensor, axes[0], kept) if axes else tensor
