"""Shared branches: layers that a forward calls on several tensors of one shape run once, on all of them as one batch.

A Siamese network calls one trunk on two images:

    f(a), f(b)    becomes    f(cat([a, b])), in two parts

The trunk's modules are then called once. So a rewrite of them holds for all branches, and their weights stay shared.
Every operator in the branches must treat the examples of a batch apart, which the caller checks on numbers. Batch norms
that train take their statistics over all branches.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.operators import called_module

__all__ = ["BatchSharedBranches", "shares_layers"]

Row = tuple[fx.Node, ...]
"""Nodes that compute the same in each branch."""


class BatchSharedBranches(PassBase):
    """Run shared branches once, on one batch of all their inputs; shapes must be known."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        while (branches := _first_branches(graph_module)) is not None:
            graph_module.graph = _Batched(graph_module.graph, branches).graph
            graph_module.recompile()
            modified = True
        return PassResult(graph_module, modified)


def shares_layers(gm: fx.GraphModule) -> bool:
    """Say whether a layer with weights is called more than once."""
    calls = Counter(node.target for node in gm.graph.find_nodes(op="call_module"))
    return any(count > 1 and any(True for _ in gm.get_submodule(path).parameters()) for path, count in calls.items())


@dataclass(frozen=True)
class _Branches:
    """Branches that run the same layers.

    Attributes:
        rows: the row of each node in a branch.
        entries: the row of each tensor that branches read from outside, by the first branch's node.
    """

    rows: dict[fx.Node, Row] = field(default_factory=dict)
    entries: dict[fx.Node, Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows.update(dict.fromkeys(row, row))

    def merges(self, nodes: Sequence[fx.Node]) -> bool:
        """Say whether arguments of one operator in each branch come from a row, or can be put into one batch."""
        first = self.rows.get(nodes[0])
        if first is not None or any(node in self.rows for node in nodes):
            return first == tuple(nodes)
        if len(set(nodes)) == 1:
            return nodes[0].op == "get_attr"  # a constant, equal for all
        if self.entries.get(nodes[0], tuple(nodes)) != tuple(nodes) or not _alike(nodes):
            return False
        self.entries[nodes[0]] = tuple(nodes)
        return True


def _first_branches(gm: fx.GraphModule) -> _Branches | None:
    """Return the first branches of a graph that can run as one; None where there are none."""
    for calls in _shared_calls(gm):
        branches = _Branches()
        if _twins(branches, calls):
            branches.add(calls)
            _grow(gm.graph, branches)
            if _come_apart(branches) and nx.is_directed_acyclic_graph(_united(gm.graph, branches)):
                return branches
    return None


def _shared_calls(gm: fx.GraphModule) -> Iterator[Row]:
    """Yield the calls of each module with weights that is called on several tensors of one shape, in order."""
    calls: dict[tuple[str, Any], list[fx.Node]] = {}
    for node in gm.graph.find_nodes(op="call_module", sort=True):
        layer = called_module(gm, node)
        if layer is not None and any(True for _ in layer.parameters()):
            calls.setdefault((node.target, _shape(node)), []).append(node)
    yield from (tuple(nodes) for nodes in calls.values() if len(nodes) > 1)


def _grow(graph: fx.Graph, branches: _Branches) -> None:
    """Add all operators behind the first row that the branches have in common."""
    for node in graph.nodes:
        read = [branches.rows[source] for source in node.all_input_nodes if source in branches.rows]
        if node not in branches.rows and read and node.op != "output":
            twins = _consumers_like(node, read[0], branches)
            if twins is not None and not _is_scalar(node) and _twins(branches, twins):
                branches.add(twins)


def _consumers_like(node: fx.Node, row: Row, branches: _Branches) -> Row | None:
    """Return a node that reads the first of a row, with the consumers of the others that stand in its place."""
    alike = [
        [user for user in read.users if user not in branches.rows and (user.op, user.target) == (node.op, node.target)]
        for read in row
    ]
    if node not in alike[0] or len({len(users) for users in alike}) > 1:
        return None
    return tuple(users[alike[0].index(node)] for users in alike)


def _twins(branches: _Branches, nodes: Row) -> bool:
    """Say whether nodes are equal operators of different branches; their arguments from outside become entries."""
    if len(set(nodes)) < len(nodes) or len({(node.op, node.target) for node in nodes}) > 1:
        return False
    leaves = [_leaves((node.args, dict(node.kwargs))) for node in nodes]
    if len({len(each) for each in leaves}) > 1:
        return False
    return all(_equal(branches, several) for several in zip(*leaves, strict=True))


def _equal(branches: _Branches, leaves: Sequence[Any]) -> bool:
    if all(isinstance(leaf, fx.Node) for leaf in leaves):
        return branches.merges(leaves)
    first = leaves[0]
    return not any(isinstance(leaf, fx.Node) for leaf in leaves) and all(
        type(leaf) is type(first) and leaf == first for leaf in leaves
    )


def _leaves(arguments: Any) -> list[Any]:
    """Return the parts of arguments, and the marks of their containers."""
    if isinstance(arguments, tuple | list):
        return [type(arguments), len(arguments), *(leaf for part in arguments for leaf in _leaves(part))]
    if isinstance(arguments, dict):
        return [*arguments, *(leaf for part in arguments.values() for leaf in _leaves(part))]
    if isinstance(arguments, slice):
        return [slice, *_leaves((arguments.start, arguments.stop, arguments.step))]
    return [arguments]


def _alike(nodes: Sequence[fx.Node]) -> bool:
    """Say whether nodes hold tensors of one shape and type with a dimension for the batch."""
    shapes = {_shape(node) for node in nodes}
    return len(shapes) == 1 and None not in shapes and bool(next(iter(shapes))[0])


def _is_scalar(node: fx.Node) -> bool:
    """Say whether a node makes a tensor without dimensions, of all examples together."""
    shape = _shape(node)
    return shape is not None and not shape[0]


def _shape(node: fx.Node) -> Any:
    """Return the shape and type of the tensor at a node; None where it is no tensor."""
    described = node.meta.get("tensor_meta")
    shape = getattr(described, "shape", None)
    return None if shape is None or described is None else (tuple(shape), described.dtype)


def _come_apart(branches: _Branches) -> bool:
    """Say whether all that is read outside the branches is a tensor, which has a part for each."""
    read = (node for node in branches.rows if any(user not in branches.rows for user in node.users))
    return all(_alike([node]) for node in read)


def _united(graph: fx.Graph, branches: _Branches) -> nx.DiGraph[Any]:
    """Return the flow of data between nodes, in which a row is one node."""
    flow: nx.DiGraph[Any] = nx.DiGraph()
    for node in graph.nodes:
        whole = branches.rows.get(node, node)
        flow.add_node(whole)
        flow.add_edges_from((branches.rows.get(source, source), whole) for source in node.all_input_nodes)
    return flow


class _Batched:
    """The graph with each row as one node.

    Attributes:
        graph: the graph.
    """

    def __init__(self, graph: fx.Graph, branches: _Branches) -> None:
        self.graph = fx.Graph()
        self._branches = branches
        self._made: dict[fx.Node, fx.Node] = {}
        self._together: dict[Row, fx.Node] = {}
        self._parts: dict[Row, fx.Node] = {}
        order = {node: position for position, node in enumerate(graph.nodes)}

        def place(part: fx.Node | Row) -> int:
            return order[part] if isinstance(part, fx.Node) else order[part[0]]

        for part in nx.lexicographical_topological_sort(_united(graph, branches), place):
            if isinstance(part, fx.Node):
                self._made[part] = self.graph.node_copy(part, self._apart)
            else:
                self._together[part] = self.graph.node_copy(part[0], self._joined)

    def _apart(self, node: fx.Node) -> fx.Node:
        """Return the node for one that stands alone, or for one branch's part of a row."""
        row = self._branches.rows.get(node)
        if row is None:
            return self._made[node]
        if node not in self._made:
            if row not in self._parts:
                sizes = (len(row), -1)
                self._parts[row] = self.graph.call_function(torch.unflatten, (self._together[row], 0, sizes))
            self._made[node] = self.graph.call_function(operator.getitem, (self._parts[row], row.index(node)))
        return self._made[node]

    def _joined(self, node: fx.Node) -> fx.Node:
        """Return the node for an argument of the first branch, all branches' in one batch."""
        row = self._branches.rows.get(node) or self._branches.entries.get(node)
        if row is None:
            return self._made[node]
        if row not in self._together:
            self._together[row] = self.graph.call_function(torch.cat, ([self._apart(each) for each in row], 0))
        return self._together[row]
