"""Trial of each operator without some of its channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fx_passes.channels.layout import Layout, Layouts, layouts_in
from fx_passes.channels.makers import Mask, maker_of
from fx_passes.channels.narrowing import narrow_node, without
from fx_passes.channels.tracer import keeps_channels
from fx_passes.module_paths import module_path
from fx_passes.output_nodes import is_output

__all__ = ["Trial"]

DRAWS = 2  # random sets of channels without which each operator is tried


class Trial(fx.Interpreter):
    """Runs a graph, each operator without some channels too, and notes which operators need all of them.

    Args:
        gm: the graph.
        made: the channels of each node's result.
        fixed: why channels cannot be removed, by id; it grows by what the trial finds.
        count: number of ids.
    """

    def __init__(self, gm: fx.GraphModule, made: Mapping[str, Layouts], fixed: dict[int, str], count: int) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self._gm = gm
        self._made, self._fixed = made, fixed
        self._removed = np.random.default_rng(0).random((DRAWS, count)) < 0.5
        self._removed[:, list(fixed)] = False

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and try it without some channels."""
        result = super().run_node(n)
        read = [self._made.get(source.name) for source in n.all_input_nodes]
        layouts = list(layouts_in([*read, self._made.get(n.name)]))
        loses_some = any(self._removed[:, layout.ids].any() for layout in layouts)
        if loses_some and any(layouts_in(read)) and self._is_doubtful(n) and not self._works(n, read, result):
            for layout in layouts:
                for label in map(int, layout.ids):
                    self._fixed.setdefault(label, f"{module_path(n)} needs all of them")
                self._removed[:, layout.ids] = False
        return result

    def _is_doubtful(self, node: fx.Node) -> bool:
        """Say whether only a trial tells if a node works without some channels."""
        layer = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        return not is_output(node) and maker_of(layer) is None and not keeps_channels(self._gm, node)

    def _works(self, node: fx.Node, read: Sequence[Layouts], result: Any) -> bool:
        """Say whether a node without some channels computes what is left of its result."""
        made = self._made.get(node.name)
        for removed in self._removed:

            def kept(layout: Layout, removed: Mask = removed) -> Mask:
                """Return which places of a layout are left."""
                return np.logical_not(removed[layout.ids])

            inputs = [without(self.env[s], one, kept) for s, one in zip(node.all_input_nodes, read, strict=True)]
            root, copied = self._alone(node)
            try:
                narrow_node(root, copied, read[0], made, kept)
                found = _Quiet(root, graph=copied.graph).run(*inputs)
            except Exception:  # an operator may fail in any way, and have arguments in any form
                return False
            if not _alike(found, without(result, made, kept)):
                return False
        return True

    def _alone(self, node: fx.Node) -> tuple[nn.Module, fx.Node]:
        """Return a copy of a node, alone in its graph, and the module that holds its layer."""
        graph, root = fx.Graph(), nn.Module()
        sources = {source: graph.placeholder(source.name) for source in node.all_input_nodes}
        copied = graph.node_copy(node, sources.__getitem__)
        graph.output(copied)
        if node.op == "call_module":
            copied.target = "layer"
            root.add_module("layer", copy.deepcopy(self.fetch_attr(str(node.target))))
        return root, copied


class _Quiet(fx.Interpreter):
    """Runs a graph; it prints nothing when a node fails."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False


def _alike(found: Any, expected: Any) -> bool:
    """Say whether all tensors of two results are alike; sizes differ as they should."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
        for one, other in pairs
        if isinstance(one, Tensor)
    )
