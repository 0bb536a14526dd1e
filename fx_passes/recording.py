"""Recording of a forward: the network runs on its example, and every call of torch becomes a node.

Real tensors pass through the forward, so Python may ask them anything that does not depend on the images: shapes,
types, `isinstance`, values of constants. Sizes become numbers in the graph. Writes into tensors become functions that
return new tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch  # fx offers no other way to the functions it wraps
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from depthcomp_errors import CaptureError
from fx_passes.examples import Examples, given_by, in_order
from fx_passes.module_paths import module_path
from fx_passes.recorded_calls import RecordedCall, called, tensors_in
from fx_passes.spatial_layers import CONVOLUTIONS
from fx_passes.symbolic import SymbolicTracer
from fx_passes.written_index import write_index

__all__ = ["ReadsValuesError", "Recorder"]

_INDEX, _WRITE = operator.getitem, operator.setitem


class ReadsValuesError(Exception):
    """Python reads values of a tensor that depend on the images, so another image may take another way."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a tensor that passes through the forward.

    Attributes:
        node: the node that computes it.
        version: how often it had been written to; torch counts for a tensor and all its views.
        from_images: whether its values depend on the inputs.
        sized: whether its size does not.
    """

    node: fx.Node
    version: int
    from_images: bool
    sized: bool


class Recorder(SymbolicTracer):
    """A tracer that runs the forward on example inputs and records the calls of torch that it makes.

    A module without convolutions that reads values of its inputs stays one call.

    Args:
        example_inputs: one tensor for each input, in the order of the forward's first arguments or by name.
        record_constants: record calls that depend on no input or parameter too; otherwise their results are stored.

    Attributes:
        constants: the tensors that the graph fetches and the network does not hold, by their names.
        rows: the first size of the tensor at each node, where it has one.
    """

    def __init__(self, example_inputs: Examples, *, record_constants: bool) -> None:
        super().__init__(given_by(example_inputs))
        self.constants: dict[str, Tensor] = {}
        self.rows: dict[fx.Node, int] = {}
        self._examples = [example.detach().clone() for example in in_order(example_inputs)]
        self._record_constants = record_constants
        self._known: Any = WeakTensorKeyDictionary()
        self._views: Any = WeakTensorKeyDictionary()  # the calls that return a tensor with another's memory
        self._own: dict[int, str] = {}  # paths of the network's tensors
        self._computing = False

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """Return the graph of the calls that the outputs depend on."""
        graph = super().trace(*args, **kwargs)
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        fetched = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in fetched}
        return graph

    def create_args_for_root(self, root_fn: Any, *rest: Any, **options: Any) -> tuple[Any, list[Any]]:
        """Return the forward, which records when it is called, and its arguments: the network and the example."""
        tensors = [*self.root.named_parameters(), *self.root.named_buffers()]
        self._own = {id(tensor): path for path, tensor in tensors}
        for name, example in zip(self.names_for(root_fn), self._examples, strict=True):
            self._know(example, self.create_node("placeholder", name, (), {}), from_images=True)

        forward = self.called_with_names(root_fn)

        def recorded(*args: Any) -> Any:
            with torch.no_grad(), _Mode(self.call), self._wrapped_as_calls():
                return forward(*args)

        return recorded, [self.root, *self._examples]

    def create_arg(self, a: Any) -> Any:
        """Return an argument of a node: for a tensor, the node that computes it."""
        if isinstance(a, Tensor):
            return self._node_of(a)
        if isinstance(a, slice) and any(map(self._is_from_images, tensors_in(a))):
            raise ReadsValuesError("the bounds of a slice depend on the images")
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the attribute itself; a parameter becomes a node where a call takes it."""
        return attr_val

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Make a call of torch and record it where its result depends on an input or a parameter."""
        if self._computing or not (self._record_constants or any(map(self._concerns, tensors_in((args, kwargs))))):
            return function(*args, **kwargs)
        return self._record(called(function, args, kwargs), lambda: function(*args, **kwargs))

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module and record its calls; a layer of torch, or one that cannot be recorded, is one call."""
        if self._computing or m not in (self.submodule_paths or ()):
            return forward(*args, **kwargs)
        whole = RecordedCall("call_module", self.path_of_module(m), args, kwargs)
        if self.is_leaf_module(m, whole.target):
            return self._record(whole, lambda: forward(*args, **kwargs))
        before, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if any(isinstance(part, CONVOLUTIONS) for part in m.modules()):
                raise
            self._forget(list(self.graph.nodes)[before:])
            while len(self.module_stack) > depth:  # fx leaves a module that failed on its stack
                self.module_stack.popitem(last=True)
            return self._record(whole, lambda: forward(*args, **kwargs))

    def _record(self, call: RecordedCall, compute: Callable[[], Any]) -> Any:
        """Make a call; give it a node where it computes or writes a tensor."""
        with self._silent():
            return self._recorded(call, compute)

    def _recorded(self, call: RecordedCall, compute: Callable[[], Any]) -> Any:
        read = list(tensors_in((call.args, call.kwargs)))
        from_images = any(map(self._is_from_images, read))
        sized = all(tensor not in self._known or self._known[tensor].sized for tensor in read)
        if (call.reads_values and from_images) or (call.reads_size and not sized):
            raise ReadsValuesError(f"{call.name} tells Python what depends on the values of the images")
        kept = [tensor for tensor in read if self._concerns(tensor)]
        arguments = self.create_arg(call.args), self.create_arg(dict(call.kwargs))  # constants as they are before it
        versions = [_version(tensor) for tensor in read]
        result = compute()
        if isinstance(result, Tensor) and any(
            result is tensor and _version(tensor) == v for tensor, v in zip(read, versions, strict=True)
        ):
            result = torch.ops.aten.alias(result)  # dropout returns its input: two tensors, as they are two nodes
        written = [tensor for tensor, version in zip(read, versions, strict=True) if _version(tensor) != version]
        target = _written_one(call, result, written)
        if target is not None and target._is_view() and not any(target is tensor for tensor in kept):
            raise CaptureError(f"{call.name} writes to a part of a constant")
        if call.target is _WRITE:
            self._know(call.args[0], self.create_node("call_function", write_index, *arguments), from_images=True)
        elif any(True for _ in tensors_in(result)):
            node = self.create_node(call.op, call.target, *arguments)
            self._know_all(result, node, from_images, sized and not (from_images and call.has_no_size))
            if isinstance(result, Tensor) and result._is_view() and not written:
                self._views[result] = call
        if target is not None:
            self._write_through(target, versions[[tensor is target for tensor in read].index(True)])
        return result

    def _write_through(self, tensor: Tensor, version: int) -> None:
        """Let a write into a tensor reach the tensors of which it shows a part.

        Args:
            tensor: what was written to.
            version: its version before.
        """
        while tensor in self._views and self._views[tensor].target is _INDEX:
            whole, index = self._views[tensor].args
            before = self._known[whole]
            if before.version != version:
                raise _stale(before.node)
            arguments = (before.node, self.create_arg(index), self._known[tensor].node)
            self._know(whole, self.create_node("call_function", write_index, arguments, {}), from_images=True)
            tensor = whole

    def _know_all(self, result: Any, node: fx.Node, *traits: bool) -> None:
        """Let a node, and nodes that take its parts, stand for the tensors of a result."""
        if isinstance(result, Tensor):
            self._know(result, node, *traits)
            return
        parts: Iterable[tuple[Any, Any]] = result.items() if isinstance(result, Mapping) else enumerate(result)
        for key, part in parts:
            if any(True for _ in tensors_in(part)):
                taken = self.create_node("call_function", _INDEX, (node, key), {})
                self._know_all(part, taken, *traits)

    def _know(self, tensor: Tensor, node: fx.Node, from_images: bool, sized: bool = True) -> None:
        self._known[tensor] = _Known(node, _version(tensor), from_images, sized)
        if tensor.ndim:
            self.rows[node] = len(tensor)

    def _concerns(self, tensor: Tensor) -> bool:
        """Say whether a tensor depends on an input or a parameter."""
        return tensor in self._known or (isinstance(tensor, nn.Parameter) and id(tensor) in self._own)

    def _is_from_images(self, tensor: Tensor) -> bool:
        return tensor in self._known and self._known[tensor].from_images

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """Return the node that computes a tensor, or one that fetches it where the forward has not computed it."""
        known = self._known.get(tensor)
        if known is not None and known.version == _version(tensor):
            node: fx.Node = known.node
            return node
        if tensor in self._views:
            return self._look_again(tensor)
        if known is not None and known.from_images:
            raise _stale(known.node)
        path = self._own.get(id(tensor))
        if path is None:
            path = f"_constant_{len(self.constants)}"
            self.constants[path] = tensor.detach().clone()
        node = self.create_node("get_attr", path, (), {})
        self._know(tensor, node, from_images=False)
        return node

    def _look_again(self, view: Tensor) -> fx.Node:
        """Return a node for a view of a tensor that has been written to."""
        call: RecordedCall = self._views[view]
        node = self.create_node(call.op, call.target, self.create_arg(call.args), self.create_arg(dict(call.kwargs)))
        self._know(view, node, from_images=True)
        return node

    def _forget(self, nodes: list[fx.Node]) -> None:
        """Remove the last nodes from the graph."""
        for node in reversed(nodes):
            self.graph.erase_node(node)
        erased = set(nodes)
        for tensor in [tensor for tensor, known in self._known.items() if known.node in erased]:
            del self._known[tensor]

    @contextmanager
    def _wrapped_as_calls(self) -> Iterator[None]:
        """Let every function that is marked with torch.fx.wrap be one call."""
        marked = [(frame, name, frame[name]) for (_, name), frame in _wrapped_fns_to_patch.items() if name in frame]
        for frame, name, function in marked:
            frame[name] = self._as_call(inspect.unwrap(function))
        try:
            yield
        finally:
            for frame, name, function in marked:
                frame[name] = function

    def _as_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            if self._computing:
                return function(*args, **kwargs)
            return self._record(
                RecordedCall("call_function", function, args, kwargs), lambda: function(*args, **kwargs)
            )

        return record

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """Record nothing for a while."""
        self._computing, before = True, self._computing
        try:
            yield
        finally:
            self._computing = before


class _Mode(TorchFunctionMode):
    """Hands every call of torch to a function."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._call(func, args, kwargs or {})


def _written_one(call: RecordedCall, result: Any, written: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that a call writes to; None where it writes to none.

    Raises:
        CaptureError: it writes to one that it does not return.
    """
    if call.target is _WRITE:
        target: Tensor = call.args[0]
        return target
    if not written or (isinstance(result, Tensor) and any(result is tensor for tensor in written)):
        return result if written else None
    raise CaptureError(f"{call.name} writes to a tensor that it does not return")


def _version(tensor: Tensor) -> int:
    """Return how often a tensor has been written to; torch does not count for inference tensors."""
    return -1 if tensor.is_inference() else tensor._version


def _stale(node: fx.Node) -> CaptureError:
    return CaptureError(
        f"{module_path(node)} is read after a write to a tensor that shares its memory; write to the tensor itself, by "
        "an index in brackets"
    )
