"""A recorded graph for batches of any size: it computes the numbers in which two recordings differ.

A recording holds every size as a number. Two runs on batches of three and two images tell which numbers are multiples
of the batch size.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fx_passes.examples import Examples, in_order, like
from fx_passes.recording import ReadsValuesError, Recorder

__all__ = ["recorded"]

_BATCHES = (3, 2)  # a batch of one image may take a branch of its own; a counter of calls would count up


class _DifferError(Exception):
    """Two recordings are not one graph for all batch sizes."""


def recorded(model: nn.Module, example_inputs: Examples) -> fx.GraphModule:
    """Return the graph that a run of `model` records; its modules are shared with the model.

    The graph takes batches of any size where the forward does the same calls for batches of three and of two images;
    otherwise it takes batches of the example's size.

    Raises:
        ReadsValuesError: Python reads values that depend on the images.
        Exception: whatever the forward raises.
    """
    tensors = in_order(example_inputs)
    share_a_batch = len({x.shape[:1] for x in tensors}) == 1 and tensors[0].dim() > 0
    ways = (_for_any_batch, _record) if share_a_batch else (_record,)
    failures: list[Exception] = []
    for way, record_constants in itertools.product(ways, (False, True)):
        try:
            return _graph_module(model, way(model, example_inputs, record_constants))
        except ReadsValuesError:
            raise
        except Exception as error:
            failures.append(error)
    raise failures[-2]  # the shorter graph tells more


def _record(model: nn.Module, inputs: Examples, record_constants: bool) -> Recorder:
    recorder = Recorder(inputs, record_constants=record_constants)
    recorder.trace(model)
    return recorder


def _graph_module(model: nn.Module, recorder: Recorder) -> fx.GraphModule:
    for name, constant in recorder.constants.items():
        setattr(model, name, constant)
    return fx.GraphModule(model, recorder.graph, type(model).__name__)


def _for_any_batch(model: nn.Module, inputs: Examples, record_constants: bool) -> Recorder:
    """Return a recording in which multiples of the batch size are computed from sizes of tensors."""
    batches = (like(inputs, [_batch_of(x, n) for x in in_order(inputs)]) for n in _BATCHES)
    first, second = (_record(model, batch, record_constants) for batch in batches)
    ours, theirs = first.constants, second.constants
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise _DifferError
    _unite(first, second)
    return first


def _batch_of(images: Tensor, count: int) -> Tensor:
    return torch.cat([images] * count)[:count]


def _unite(recorder: Recorder, other: Recorder) -> None:
    """Let the graph of the first batch compute what differs in the graph of the second one."""
    if len(recorder.graph.nodes) != len(other.graph.nodes):
        raise _DifferError
    twins = dict(zip(other.graph.nodes, recorder.graph.nodes, strict=True))
    rows = {ours: (recorder.rows[ours], other.rows[theirs]) for theirs, ours in twins.items() if ours in recorder.rows}
    for theirs, ours in twins.items():
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            raise _DifferError
        multiples = _Multiples(ours, rows)
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
    """Nodes that compute multiples of the batch size for the arguments of one node.

    They read the size of a tensor that the node reads itself, so that no data pass by the layers between. A node that
    reads no tensor takes the first input's size.

    Args:
        user: the node.
        rows: the first size of the tensor at each node, in the first and in the second batch.
    """

    def __init__(self, user: fx.Node, rows: Mapping[fx.Node, tuple[int, int]]) -> None:
        self._user, self._rows = user, rows
        self._sources = [*user.all_input_nodes, *user.graph.find_nodes(op="placeholder")]

    def node(self, ours: Any, theirs: Any) -> fx.Node:
        """Return a node for a number that is `ours` in the first batch and `theirs` in the second one."""
        if not isinstance(ours, int) or not isinstance(theirs, int):
            raise _DifferError
        for source in self._sources:
            first, second = self._rows.get(source, (0, 0))
            if (
                first != second
                and first
                and ours * second == theirs * first
                and max(ours, first) % min(ours, first) == 0
            ):
                return self._scaled(source, ours, first)
        raise _DifferError

    def _scaled(self, source: fx.Node, wanted: int, rows: int) -> fx.Node:
        graph = self._user.graph
        with graph.inserting_before(self._user):
            size = graph.call_method("size", (source, 0))
            if wanted == rows:
                return size
            scale, factor = (operator.mul, wanted // rows) if wanted > rows else (operator.floordiv, rows // wanted)
            return graph.call_function(scale, (size, factor))
