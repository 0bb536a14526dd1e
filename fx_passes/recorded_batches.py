"""A recorded graph for batches of any size: it computes the numbers in which two recordings differ.

A recording holds every size as a number. Two runs on batches of three and two images tell which numbers are multiples
of the batch size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fx_passes.recording import ReadsValuesError, Recorder

__all__ = ["recorded"]

_BATCHES = (3, 2)  # a batch of one image may take a branch of its own; a counter of calls would count up


class _DifferError(Exception):
    """Two recordings are not one graph for all batch sizes."""


def recorded(model: nn.Module, example_inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return the graph that a run of `model` records; its modules are shared with the model.

    The graph takes batches of any size where the forward does the same calls for batches of three and of two images;
    otherwise it takes batches of the example's size.

    Raises:
        ReadsValuesError: Python reads values that depend on the images.
        Exception: whatever the forward raises.
    """
    ways: list[Callable[[bool], Recorder]] = [lambda constants: _record(model, example_inputs, constants)]
    if len({x.shape[:1] for x in example_inputs}) == 1 and example_inputs[0].dim():
        ways.insert(0, lambda constants: _for_any_batch(model, example_inputs, constants))
    failures: list[Exception] = []
    for way in ways:
        for record_constants in (False, True):
            try:
                return _graph_module(model, way(record_constants))
            except ReadsValuesError:
                raise
            except Exception as error:
                failures.append(error)
    raise failures[-2]  # the shorter graph tells more


def _record(model: nn.Module, inputs: Sequence[Tensor], record_constants: bool) -> Recorder:
    recorder = Recorder(inputs, record_constants=record_constants)
    recorder.trace(model)
    return recorder


def _graph_module(model: nn.Module, recorder: Recorder) -> fx.GraphModule:
    for name, constant in recorder.constants.items():
        setattr(model, name, constant)
    return fx.GraphModule(model, recorder.graph, type(model).__name__)


def _for_any_batch(model: nn.Module, inputs: Sequence[Tensor], record_constants: bool) -> Recorder:
    """Return a recording in which multiples of the batch size are computed from the first input."""
    first, second = (_record(model, [_batch_of(x, n) for x in inputs], record_constants) for n in _BATCHES)
    constants = [recorder.constants for recorder in (first, second)]
    if constants[0].keys() != constants[1].keys() or not all(map(torch.equal, *(c.values() for c in constants))):
        raise _DifferError
    _unite(first.graph, second.graph)
    return first


def _batch_of(images: Tensor, count: int) -> Tensor:
    return torch.cat([images] * count)[:count]


def _unite(graph: fx.Graph, other: fx.Graph) -> None:
    """Let `graph`, recorded on the first batch, compute what differs in `other`, recorded on the second one."""
    if len(graph.nodes) != len(other.nodes):
        raise _DifferError
    twins = dict(zip(other.nodes, graph.nodes, strict=True))
    multiples = _Multiples(graph)
    for theirs, ours in twins.items():
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            raise _DifferError
        ours.args = _united(ours.args, theirs.args, twins, multiples)
        ours.kwargs = _united(ours.kwargs, theirs.kwargs, twins, multiples)


def _united(ours: Any, theirs: Any, twins: Mapping[fx.Node, fx.Node], multiples: _Multiples) -> Any:
    """Return an argument for any batch size, given what it is for both."""
    if isinstance(ours, fx.Node):
        if twins.get(theirs) is not ours:
            raise _DifferError
        return ours
    if isinstance(ours, tuple | list) and type(ours) is type(theirs) and len(ours) == len(theirs):
        parts = [_united(*pair, twins, multiples) for pair in zip(ours, theirs, strict=True)]
        return parts if isinstance(ours, list) else tuple(parts)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        return {key: _united(ours[key], theirs[key], twins, multiples) for key in ours}
    if isinstance(ours, slice) and isinstance(theirs, slice):
        first, second = ((each.start, each.stop, each.step) for each in (ours, theirs))
        return slice(*_united(first, second, twins, multiples))
    if type(ours) is type(theirs) and ours == theirs:
        return ours
    return multiples.node(ours, theirs)


class _Multiples:
    """Nodes that compute multiples of the batch size, each once."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._known: dict[int, fx.Node] = {}

    def node(self, ours: Any, theirs: Any) -> fx.Node:
        """Return a node for a number that is `ours` in the first batch and `theirs` in the second one."""
        factor = ours // _BATCHES[0] if isinstance(ours, int) else 0
        if not factor or (ours, theirs) != tuple(factor * n for n in _BATCHES):
            raise _DifferError
        if factor not in self._known:
            self._known[factor] = self._new(factor)
        return self._known[factor]

    def _new(self, factor: int) -> fx.Node:
        placeholders = self._graph.find_nodes(op="placeholder")
        if factor == 1:
            with self._graph.inserting_after(placeholders[-1]):
                return self._graph.call_method("size", (placeholders[0], 0))
        size = self.node(*_BATCHES)
        with self._graph.inserting_after(size):
            return self._graph.call_function(operator.mul, (size, factor))
