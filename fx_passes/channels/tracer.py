"""Search for the channels of every tensor of a graph: new ones, those passed on, and those that are tied."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fx_passes.channels.layout import Ids, Layout, Layouts, layouts_in
from fx_passes.channels.makers import Maker, maker_of
from fx_passes.channels.probing import NONE, MixedChannelsError, dependence, moved
from fx_passes.exclusion import exclusion
from fx_passes.module_paths import module_path
from fx_passes.operators import ACTIVATIONS, NORMS, PASSED, known_layer
from fx_passes.output_nodes import is_output

__all__ = ["Tracer", "keeps_channels"]

_ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    "add", "sub", "mul", "div",
}  # fmt: skip
_MOVES = {
    torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
}  # fmt: skip


class Tracer(fx.Interpreter):
    """Runs a graph, and finds the channels of each node's result.

    Args:
        gm: the graph.

    Attributes:
        made: the channels of each node's result so far; nodes without known channels are left out.
        fixed: channels that cannot be removed, and why.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self._gm = gm
        self.made: dict[str, Layouts] = {}
        self._count = 0
        self._ties: list[Ids] = []
        self.fixed: list[tuple[Ids, str]] = []

    def groups(self) -> tuple[int, Ids]:
        """Return the number of groups of tied channels, and the group of each channel."""
        some, others = np.hstack([np.empty((2, 0), np.int64), *self._ties])
        matrix = coo_array((np.ones(len(some), bool), (some, others)), shape=(self._count, self._count))
        count, labels = connected_components(matrix, directed=False)
        return int(count), labels.astype(np.int64)

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and note the channels of the result."""
        result = super().run_node(n)
        found = self._channels(n, result)
        if found is not None:
            self.made[n.name] = found
        if exclusion(n):
            self._fix([*(self.made.get(source.name) for source in n.all_input_nodes), found], exclusion(n))
        return result

    def _channels(self, node: fx.Node, result: Any) -> Layouts:
        read = [self.made.get(source.name) for source in node.all_input_nodes]
        if is_output(node):
            self._fix(read, "the network returns them")
        layer = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        maker = maker_of(layer)
        if maker is not None:
            return self._new(maker, layer, node, read[0], result)
        if is_output(node) or not any(layouts_in(read)) or not _holds_tensors(result):
            return None
        if keeps_channels(self._gm, node):
            return read[0]
        if node.target is operator.getitem and isinstance(read[0], tuple) and isinstance(node.args[1], int):
            return read[0][node.args[1]]
        return self._passed_on(node, read, result)

    def _new(self, maker: Maker[Any], layer: Any, node: fx.Node, read: Layouts, result: Tensor) -> Layout:
        """Return new channels; those that a group reads and makes are tied."""
        (axis, made_axis), groups = maker.axes(result.ndim), maker.groups(layer)
        made = Layout(made_axis, self._fresh(result.shape[made_axis]))
        known = isinstance(read, Layout) and read.axis == axis
        if not known:
            self._fix([read], f"{module_path(node)} works along another axis")
        if groups > 1 and isinstance(read, Layout) and known:
            for inside, outside in zip(np.split(read.ids, groups), np.split(made.ids, groups), strict=True):
                together = np.concatenate([inside, outside])
                self._tie(together[:-1], together[1:])
        elif groups > 1:
            self._fix([made], f"what {module_path(node)} reads is not known")
        return made

    def _passed_on(self, node: fx.Node, read: Sequence[Layouts], result: Any) -> Layouts:
        """Return the channels that an operator passes on; where it mixes them, they are fixed."""
        parts = result if isinstance(result, tuple | list) else (result,)
        try:
            found = tuple(self._part(node, read, part, index) for index, part in enumerate(parts))
        except MixedChannelsError:
            self._fix(read, f"{module_path(node)} mixes them")
            return None
        return found if isinstance(result, tuple | list) else found[0]

    def _part(self, node: fx.Node, read: Sequence[Layouts], part: Any, index: int) -> Layout | None:
        """Return the channels in one tensor of an operator's result.

        Raises:
            MixedChannelsError: a channel of the result depends on several of one input, or that cannot be found out.
        """
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.isnan().any():
            raise MixedChannelsError
        axes, columns = set[int](), list[Ids]()
        for source, layout in zip(node.all_input_nodes, read, strict=True):
            if isinstance(layout, tuple):
                raise MixedChannelsError
            found = None if layout is None else self._dependence(node, source, layout, index, part.ndim)
            if found is not None:
                axes.add(found[0])
                columns.append(found[1])
        if len(axes) > 1:
            raise MixedChannelsError
        return Layout(axes.pop(), self._joined(columns)) if axes else None

    def _dependence(
        self, node: fx.Node, source: fx.Node, layout: Layout, index: int, dimensions: int
    ) -> tuple[int, Ids] | None:
        if len(np.unique(layout.ids)) < 2:  # a lone channel is never removed
            return None
        named = None if node.op == "call_module" else node.target  # a module may be called "add"
        if named in _ELEMENTWISE:
            return layout.axis + dimensions - self.env[source].ndim, layout.ids  # broadcast from the right

        def run(value: Tensor) -> Tensor:
            """Return the node's result, or a part of it, for another value of one input."""
            values = fx.node.map_arg((node.args, node.kwargs), lambda arg: value if arg is source else self.env[arg])
            result = getattr(self, node.op)(node.target, *values)
            part: Tensor = result[index] if isinstance(result, tuple | list) else result
            return part

        return (moved if named in _MOVES else dependence)(run, self.env[source], layout)

    def _joined(self, columns: Sequence[Ids]) -> Ids:
        """Return the channels of a result that depends on several tensors; those from elsewhere are fixed."""
        ids = columns[0].copy()
        for other in columns[1:]:
            both = (ids != NONE) & (other != NONE)
            self._tie(ids[both], other[both])
            ids = np.where(ids == NONE, other, ids)
        foreign = ids == NONE
        ids[foreign] = fresh = self._fresh(int(foreign.sum()))
        self.fixed.append((fresh, "no layer makes them"))
        return ids

    def _fresh(self, count: int) -> Ids:
        self._count += count
        return np.arange(self._count - count, self._count)

    def _tie(self, some: Ids, others: Ids) -> None:
        self._ties.append(np.stack([some, others]))

    def _fix(self, layouts: Iterable[Layouts], reason: str) -> None:
        self.fixed.extend((layout.ids, reason) for layout in layouts_in(layouts))


def keeps_channels(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the class of a node's layer tells that each channel stays what it is."""
    return isinstance(known_layer(gm, node), (*ACTIVATIONS, *NORMS, *PASSED))


def _holds_tensors(result: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
