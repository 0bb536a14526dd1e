"""Running parts of a graph: forwards that stop at chosen tensors, and re-runs of what follows a changed tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from fx_passes.graph_edit import nodes_by_name

__all__ = ["Stream", "Tail", "record"]

Environment = dict[fx.Node, Any]
Replacements = Mapping[str, Callable[[Tensor], Tensor]]
"""What is computed at some nodes, by their names, from the one tensor that each reads."""

_NOTHING: Replacements = MappingProxyType({})


class Stream:
    """A forward over several batches that advances node by node and forgets what is no longer needed.

    `advance(name)` runs every batch up to a node; the tensors there are then in `values(name)`. The names are to
    be asked for in the graph's order. The modules may be changed between two advances; what already ran is kept.
    """

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self._interpreter = fx.Interpreter(gm, garbage_collect_values=False)
        self._nodes = list(gm.graph.nodes)
        self._positions = {node.name: index for index, node in enumerate(self._nodes)}
        last_use = {source: node for node in self._nodes for source in node.all_input_nodes}
        self._dead_after: dict[fx.Node, list[fx.Node]] = {}
        for source, user in last_use.items():
            self._dead_after.setdefault(user, []).append(source)
        self._batches = batches
        self._environments: list[Environment] = [{} for _ in batches]
        self._done = 0

    def advance(self, name: str) -> None:
        """Run all batches up to the node called `name`, itself included."""
        stop = max(self._positions[name] + 1, self._done)
        for batch, environment in zip(self._batches, self._environments, strict=True):
            for node in self._nodes[self._done : stop]:
                environment[node] = _run_node(self._interpreter, node, environment, batch)
                for source in self._dead_after.get(node, ()):
                    del environment[source]
        self._done = stop

    def values(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor at the node called `name` for each batch."""
        node = self._nodes[self._positions[name]]
        for environment in self._environments:
            yield environment[node]


class Tail:
    """The rest of a network after a changed tensor, everything else as in one recorded forward.

    Args:
        gm: the network, in evaluation mode; it is not changed.
        batch: images (n, c, h, w).

    Attributes:
        gm: the network.
    """

    def __init__(self, gm: fx.GraphModule, batch: Tensor) -> None:
        self.gm = gm
        self._interpreter = fx.Interpreter(gm, garbage_collect_values=False)
        self._nodes = nodes_by_name(gm)
        self._recorded: Environment = {}
        for node in gm.graph.nodes:
            self._recorded[node] = _run_node(self._interpreter, node, self._recorded, batch)

    def value(self, name: str) -> Tensor:
        """Return the recorded tensor at the node called `name`."""
        tensor: Tensor = self._recorded[self._nodes[name]]
        return tensor

    @property
    def output(self) -> Any:
        """The recorded output."""
        return self._recorded[next(reversed(self._nodes.values()))]

    def rerun(self, name: str, value: Tensor, replaced: Replacements = _NOTHING) -> Any:
        """Return the output with the tensor at the node called `name` replaced by `value`.

        Nodes behind it compute what `replaced` says.
        """
        *_, (_, output) = self._rerun(name, value, replaced, next(reversed(self._nodes.values())))
        return output

    def rerun_at(self, name: str, value: Tensor, wanted: Collection[str]) -> dict[str, Any]:
        """Return what `rerun` has at some nodes, stopping after the last of them; as recorded where nothing changes."""
        found = {other: self._recorded[self._nodes[other]] for other in wanted}
        last = next((node for node in reversed(self._nodes.values()) if node.name in wanted), self._nodes[name])
        for node, tensor in self._rerun(name, value, _NOTHING, last):
            if node.name in wanted:
                found[node.name] = tensor
        return found

    def _rerun(self, name: str, value: Tensor, replaced: Replacements, last: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
        """Yield the nodes whose tensors change, and these, up to the last node."""
        changed: Environment = {self._nodes[name]: value}
        yield self._nodes[name], value
        for node in self._nodes.values():
            if node not in changed and any(source in changed for source in node.all_input_nodes):
                environment: Environment = {s: changed.get(s, self._recorded[s]) for s in node.all_input_nodes}
                if node.name in replaced:
                    (tensor,) = environment.values()
                    changed[node] = replaced[node.name](tensor)
                else:
                    changed[node] = _run_node(self._interpreter, node, environment, value)
                yield node, changed[node]
            if node is last:
                return


def record(gm: fx.GraphModule, batch: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors at the nodes called `names` in a forward of `gm`, stopping after the last of them."""
    remaining = set(names)
    recorded: dict[str, Tensor] = {}
    stream = Stream(gm, [batch])
    for node in gm.graph.nodes:
        if node.name in remaining:
            stream.advance(node.name)
            recorded[node.name] = next(stream.values(node.name))
    return recorded


def _run_node(interpreter: fx.Interpreter, node: fx.Node, environment: Environment, batch: Tensor) -> Any:
    if node.op == "placeholder":
        return node.args[0] if node.args else batch
    if node.op == "output":
        return fx.map_arg(node.args[0], lambda source: environment[source])
    interpreter.env = environment
    with torch.no_grad():
        return interpreter.run_node(node)
