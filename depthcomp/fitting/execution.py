"""Partial forwards of a graph: up to chosen tensors, or from a changed tensor on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from depthcomp.data.inputs import Inputs
from fx_passes.graph_edit import nodes_by_name

__all__ = ["Replacements", "Stream", "Tail", "inputs_by_node", "record", "run_node"]

Environment = dict[fx.Node, Any]
Replacements = Mapping[str, Callable[[Tensor], Tensor]]
"""Functions by node name; each takes the one tensor that its node reads, and returns the node's tensor."""

_NOTHING: Replacements = MappingProxyType({})
_NO_INPUTS: Mapping[fx.Node, Tensor] = MappingProxyType({})


class Stream:
    """A forward of several batches that advances node by node and frees tensors after their last use.

    `advance(name)` runs every batch up to a node; `values(name)` then yields the tensors there. Names must come in the
    graph's order. Modules may change between two advances; nodes that have run do not run again.
    """

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Tensor | Inputs]) -> None:
        self._interpreter = fx.Interpreter(gm, garbage_collect_values=False)
        self._nodes = list(gm.graph.nodes)
        self._positions = {node.name: index for index, node in enumerate(self._nodes)}
        last_use = {source: node for node in self._nodes for source in node.all_input_nodes}
        self._dead_after: dict[fx.Node, list[fx.Node]] = {}
        for source, user in last_use.items():
            self._dead_after.setdefault(user, []).append(source)
        self._batches = [inputs_by_node(gm, batch) for batch in batches]
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
    """A recorded forward that reruns the nodes behind a changed tensor.

    Args:
        gm: the network, in evaluation mode; it is not changed.
        batch: images (n, c, h, w), or several inputs.
        recorded: the tensor of each node, where the forward has run already; None to run it.

    Attributes:
        gm: the network.
    """

    def __init__(self, gm: fx.GraphModule, batch: Tensor | Inputs, *, recorded: Environment | None = None) -> None:
        self.gm = gm
        self._interpreter = fx.Interpreter(gm, garbage_collect_values=False)
        self._nodes = nodes_by_name(gm)
        self._recorded: Environment = {} if recorded is None else recorded
        inputs = inputs_by_node(gm, batch)
        for node in gm.graph.nodes if recorded is None else ():
            self._recorded[node] = _run_node(self._interpreter, node, self._recorded, inputs)

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

        Nodes named in `replaced` compute the functions given there.
        """
        *_, (_, output) = self._rerun(name, value, replaced, next(reversed(self._nodes.values())))
        return output

    def rerun_at(
        self, name: str, value: Tensor, wanted: Collection[str], replaced: Replacements = _NOTHING
    ) -> dict[str, Any]:
        """Return the tensors of `rerun` at the nodes in `wanted`, up to the last one; unchanged ones as recorded."""
        found = {other: self._recorded[self._nodes[other]] for other in wanted}
        last = next((node for node in reversed(self._nodes.values()) if node.name in wanted), self._nodes[name])
        for node, tensor in self._rerun(name, value, replaced, last):
            if node.name in wanted:
                found[node.name] = tensor
        return found

    def _rerun(self, name: str, value: Tensor, replaced: Replacements, last: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
        """Yield each node up to `last` whose tensor changes, with the changed tensor."""
        changed: Environment = {self._nodes[name]: value}
        yield self._nodes[name], value
        for node in self._nodes.values():
            if node not in changed and any(source in changed for source in node.all_input_nodes):
                environment: Environment = {s: changed.get(s, self._recorded[s]) for s in node.all_input_nodes}
                if node.name in replaced:
                    (tensor,) = environment.values()
                    changed[node] = replaced[node.name](tensor)
                else:
                    changed[node] = _run_node(self._interpreter, node, environment)
                yield node, changed[node]
            if node is last:
                return


def record(gm: fx.GraphModule, batch: Tensor | Inputs, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors at the nodes called `names` in a forward of `gm`, stopping after the last of them."""
    remaining = set(names)
    recorded: dict[str, Tensor] = {}
    stream = Stream(gm, [batch])
    for node in gm.graph.nodes:
        if node.name in remaining:
            stream.advance(node.name)
            recorded[node.name] = next(stream.values(node.name))
    return recorded


def inputs_by_node(gm: fx.GraphModule, batch: Tensor | Inputs) -> Environment:
    """Return the tensor that each placeholder of a graph stands for."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return dict(zip(placeholders, Inputs.of(batch).tensors, strict=True))


def run_node(
    interpreter: fx.Interpreter, node: fx.Node, environment: Environment, inputs: Mapping[fx.Node, Tensor] = _NO_INPUTS
) -> Any:
    """Return the value of a node in a forward of `inputs`, given the values of the nodes before it."""
    if node.op == "placeholder":
        return inputs[node]
    if node.op == "output":
        return fx.map_arg(node.args[0], lambda source: environment[source])
    interpreter.env = environment
    return fx.Interpreter.run_node(interpreter, node)


_run_node = torch.no_grad()(run_node)
