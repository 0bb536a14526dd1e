"""A part of a captured graph: what one of the user's modules computes, as a graph of its own.

Nothing outside the part may change, so the nodes there are marked as excluded ones are. Rewrites keep the names of the
tensors that the part reads and returns, so the part of a rewritten graph is found by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from depthcomp_errors import CaptureError
from fx_passes.exclusion import belongs, mark_nodes
from fx_passes.graph_edit import attach_attributes, nodes_by_name, preserved_attributes

__all__ = ["GraphPart", "find_part"]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a graph, by the name of its node."""

    name: str


@dataclass(frozen=True, slots=True)
class GraphPart:
    """A part of a graph.

    Attributes:
        path: the path of the user's module.
        entry: name of the node whose tensor it reads.
        returned: what it returns, with `_Tensor` in the place of tensors.
        attributes: plain attributes of the user's module, which the whole may read.
    """

    path: str
    entry: str
    returned: Any
    attributes: Mapping[str, Any]

    def names(self, gm: fx.GraphModule) -> set[str]:
        """Return the names of the part's nodes in the graph, or in a graph made from it."""
        nodes, found = nodes_by_name(gm), set[str]()
        pending = [nodes[tensor.name] for tensor in _tensors(self.returned)]
        while pending:
            node = pending.pop()
            if node.name not in found and node.name != self.entry:
                found.add(node.name)
                pending.extend(node.all_input_nodes)
        return found

    def mark_others(self, gm: fx.GraphModule) -> None:
        """Let everything outside the part stay as it is, in place."""
        others = nodes_by_name(gm).keys() - self.names(gm)
        mark_nodes(gm, dict.fromkeys(others, f"only {self.path} is to be compressed"))

    def of(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return the part of the graph, or of a graph made from it; modules are shared."""
        nodes, names, graph = nodes_by_name(gm), self.names(gm), fx.Graph()
        made = {self.entry: graph.placeholder(self.entry)}
        made[self.entry].meta["tensor_meta"] = nodes[self.entry].meta["tensor_meta"]
        for name, node in nodes.items():
            if name in names:
                made[name] = graph.node_copy(node, lambda source: made[source.name])
        graph.output(_with(self.returned, lambda tensor: made[tensor.name], _Tensor))
        part = fx.GraphModule(gm, graph, type(gm).__name__)
        attach_attributes(part, {name: value for name, value in self.attributes.items() if not hasattr(part, name)})
        return part


def find_part(gm: fx.GraphModule, path: str, own: fx.GraphModule) -> GraphPart:
    """Return the part of a captured graph that one of the user's modules computes.

    Args:
        gm: the captured graph of the whole.
        path: the path of the module in it.
        own: the captured graph of the module alone, which tells what it returns.

    Raises:
        CaptureError: the module runs more than once, reads more than one tensor, returns a tensor that it does not
            compute, or is another graph in the whole.
    """
    inner = [node for node in gm.graph.nodes if node.op.startswith("call") and belongs(node, path)]
    alone = [node for node in own.graph.nodes if node.op.startswith("call")]
    read = {source for node in inner for source in node.all_input_nodes if source.op != "get_attr"} - set(inner)
    if len(read) != 1:
        raise CaptureError(f"{path} reads {len(read)} tensors of the whole, and must read one")
    (entry,), (placeholder,) = read, own.graph.find_nodes(op="placeholder")
    together = _shape(entry) != _shape(placeholder)  # calls that capture joined in one batch
    if together or [_called(gm, node) for node in inner] != [_called(own, node) for node in alone]:
        raise CaptureError(f"{path} computes other operators in the whole than alone, or runs more than once")
    same = dict(zip(alone, inner, strict=True)) | {placeholder: entry}
    output = next(iter(own.graph.find_nodes(op="output")))
    if not same.keys() >= set(output.all_input_nodes):
        raise CaptureError(f"{path} returns a tensor that it does not compute")
    returned = _with(output.args[0], lambda node: _Tensor(same[node].name), fx.Node)
    return GraphPart(path, entry.name, returned, preserved_attributes(own))


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _called(gm: fx.GraphModule, node: fx.Node) -> tuple[str, Any]:
    """Return the operation of a node, and the type of its module or its function."""
    return node.op, type(gm.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _with(returned: Any, other: Callable[[Any], Any], kind: type) -> Any:
    """Return nested outputs with something else in the place of each leaf of a type."""
    return map_aggregate(returned, lambda leaf: other(leaf) if isinstance(leaf, kind) else leaf)


def _tensors(returned: Any) -> list[_Tensor]:
    found = list[_Tensor]()
    _with(returned, found.append, _Tensor)
    return found
