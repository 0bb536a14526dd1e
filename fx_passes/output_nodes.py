"""Nodes of a graph that stand for its outputs, and the real values behind outputs that are integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

__all__ = ["add_floats_behind", "is_output", "returned_nodes"]


def is_output(node: fx.Node) -> bool:
    """Say whether a node is the output of a graph, or puts outputs into an object of the user's class."""
    return node.op == "output" or (node.op == "call_function" and isinstance(node.target, type))


def add_floats_behind(gm: fx.GraphModule) -> bool:
    """Add the floating-point tensors behind the outputs to a captured graph's outputs, where no output is one.

    Classes and masks are computed from scores; only those tell how much a change matters. The graph is changed in
    place, and returns pairs of its outputs and these tensors.

    Returns:
        Whether the graph was changed.
    """
    output = next(iter(gm.graph.find_nodes(op="output")))
    returned = list(returned_nodes(output))
    behind = list(dict.fromkeys(node for source in returned for node in _floats_behind(source)))
    if any(dtype.is_floating_point for node in returned for dtype in _dtypes(node)) or not behind:
        return False
    output.args = ((output.args[0], tuple(behind)),)
    gm.recompile()
    return True


def returned_nodes(output: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes whose values an output node returns, in order, also out of objects of the user's classes."""
    for source in tree_leaves((output.args, dict(output.kwargs))):
        if isinstance(source, fx.Node):
            yield from returned_nodes(source) if is_output(source) else (source,)


def _floats_behind(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the last nodes before a node whose values are floating-point tensors."""
    for source in node.all_input_nodes:
        dtypes = _dtypes(source)  # several where an operator returns a tuple, as topk does
        if dtypes:  # none in a size
            real = all(dtype.is_floating_point for dtype in dtypes)
            yield from (source,) if real else _floats_behind(source)


def _dtypes(node: fx.Node) -> list[torch.dtype]:
    return [leaf for leaf in tree_leaves(node.meta.get("tensor_meta")) if isinstance(leaf, torch.dtype)]
