"""The calls that a torch function mode sees, in the forms that a symbolic trace gives them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

__all__ = ["RecordedCall", "called", "tensors_in"]

_READERS = frozenset({
    "item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "__array__", "__bool__", "__complex__",
    "__contains__", "__dlpack__", "__float__", "__index__", "__int__",
})  # fmt: skip
"""Functions that tell Python values of a tensor."""

_SIZE_READERS = frozenset({
    "__len__", "chunk", "nelement", "numel", "shape", "size", "split", "tensor_split", "unbind",
})  # fmt: skip
"""Functions that tell Python the size of a tensor."""

_OF_NO_SIZE = frozenset({
    "argwhere", "batched_nms", "bincount", "masked_select", "nms", "nonzero", "unique", "unique_consecutive",
})  # fmt: skip
"""Functions whose results have sizes that depend on values."""

_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul,
    "pow": operator.pow, "neg": operator.neg, "remainder": operator.mod, "floor_divide": operator.floordiv,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "add_": operator.iadd, "sub_": operator.isub, "mul_": operator.imul, "div_": operator.itruediv,
}  # fmt: skip
"""Operators by the tensor methods that they reach torch as."""

_SWAPPED = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod, "__rmatmul__": operator.matmul,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call, ready to become a node.

    Attributes:
        op: "call_function" or "call_method".
        target: the function, or the method's name.
        args: its arguments by position.
        kwargs: its arguments by name.
        reads_values: whether its result tells values of a tensor to Python.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reads_values: bool = False

    @property
    def name(self) -> str:
        """The name of the function, method or attribute."""
        if self.target is getattr:
            return str(self.args[1])
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", "")

    @property
    def reads_size(self) -> bool:
        """Whether its result tells the size of a tensor to Python."""
        return self.name in _SIZE_READERS

    @property
    def has_no_size(self) -> bool:
        """Whether the size of its result depends on values."""
        if self.target is operator.getitem:
            return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(self.args[1]))
        return self.name in _OF_NO_SIZE or (self.name == "where" and len(self.args) + len(self.kwargs) == 1)


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RecordedCall:
    """Return the call of a function of torch as a symbolic trace would record it."""
    _, _, method = (resolve_name(function) or "").partition("torch.Tensor.")
    named = {name: value for name, value in kwargs.items() if name != "out"}
    if method.endswith(".__get__"):
        return _attribute(method.removesuffix(".__get__"), args)
    if method in _READERS or getattr(function, "__name__", "") in _READERS:
        return RecordedCall("call_method", method or function.__name__, args, named, reads_values=True)
    if not method:
        return RecordedCall("call_function", function, args, named)
    if method in _SWAPPED:
        return RecordedCall("call_function", _SWAPPED[method], args[::-1], {})
    written = _OPERATORS.get(method) or (getattr(operator, method, None) if method.startswith("__") else None)
    if written is not None and not kwargs:
        return RecordedCall("call_function", getattr(operator, written.__name__), args, {})
    return RecordedCall("call_method", method, args, named)


def _attribute(name: str, args: tuple[Any, ...]) -> RecordedCall:
    if name == "data":
        return RecordedCall("call_method", "detach", args[:1], {})
    return RecordedCall("call_function", getattr, (args[0], name), {})


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results of a call: in lists, tuples, dicts and slices, nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))
