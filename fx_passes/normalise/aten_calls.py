"""Public functions of torch in place of the aten operators that graphs of torch.export call."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["AtenCalls"]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a node calls, and with which arguments; a target that is a name is a method's."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


class AtenCalls(PassBase):
    """Replace aten operators by the functions and methods of torch that take the same arguments.

    Operators without such a form stay.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in graph_module.graph.nodes:
            found = _public(node) if isinstance(node.target, OpOverload) else None
            if found is not None:
                node.op = "call_method" if isinstance(found.target, str) else "call_function"
                node.target, node.args, node.kwargs = found.target, found.args, found.kwargs
                modified = True
        return PassResult(graph_module, modified)


def _public(node: fx.Node) -> _Call | None:
    """Return the public form of a node's call; None where there is none."""
    operator_: OpOverload = node.target  # type: ignore[assignment]
    if operator_.namespace != "aten":
        return None
    name = operator_._schema.name.partition("::")[2]
    special = _SPECIAL.get(name)
    if special is not None:
        return special(*node.args, **node.kwargs)
    args, kwargs = tuple(node.args), dict(node.kwargs)
    if name.endswith("_") and _takes_inplace(name[:-1]):
        return _Call(getattr(F, name[:-1]), args, {**kwargs, "inplace": True})
    if name in _METHODS:
        return _Call(name, args, kwargs)
    function = getattr(F, name, None) or getattr(torch, name, None)
    if function is not None:
        return _Call(function, args, kwargs)
    return _Call(name, args, kwargs) if hasattr(Tensor, name) else None


_METHODS = frozenset({"clone", "contiguous", "expand", "permute", "repeat", "reshape", "to", "transpose", "view"})
"""Operators that later passes know as methods."""


def _takes_inplace(name: str) -> bool:
    function = getattr(F, name, None)
    return inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *options: Any) -> _Call:
    training, momentum, eps, *_ = options
    return _Call(F.batch_norm, (x, mean, variance, weight, bias, training, momentum, eps))


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> _Call:
    return _Call(F.layer_norm, (x, tuple(shape), weight, bias, eps))


def _group_norm(x: Any, groups: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> _Call:
    return _Call(F.group_norm, (x, groups, weight, bias, eps))


def _slice(x: Any, dim: int = 0, start: Any = None, stop: Any = None, step: Any = 1) -> _Call:
    last = None if stop == sys.maxsize else stop
    if dim < 0:
        return _Call(operator.getitem, (x, (Ellipsis, slice(start, last, step), *[slice(None)] * (-1 - dim))))
    return _Call(operator.getitem, (x, (*[slice(None)] * dim, slice(start, last, step))))


def _upsample(mode: str, x: Any, size: Any, *options: Any) -> _Call:
    *align, scales = options
    named = {"align_corners": align[0]} if align else {}
    return _Call(F.interpolate, (x, size, scales), {"mode": mode, **named})


def _operator(function: Callable[..., Any], operation: Callable[..., Any], *args: Any, **kwargs: Any) -> _Call:
    return _Call(function if kwargs or len(args) > 2 else operation, args, kwargs)


_SPECIAL: dict[str, Callable[..., _Call]] = {
    "batch_norm": _batch_norm, "layer_norm": _layer_norm, "group_norm": _group_norm, "slice": _slice,
    "sym_size": lambda x, dim: _Call("size", (x, dim)),
    "upsample_nearest2d": partial(_upsample, "nearest"), "upsample_bilinear2d": partial(_upsample, "bilinear"),
    "upsample_bicubic2d": partial(_upsample, "bicubic"),
    "add": partial(_operator, torch.add, operator.add), "sub": partial(_operator, torch.sub, operator.sub),
    "mul": partial(_operator, torch.mul, operator.mul), "div": partial(_operator, torch.div, operator.truediv),
    "pow": partial(_operator, torch.pow, operator.pow), "matmul": partial(_operator, torch.matmul, operator.matmul),
    "add_": partial(_operator, torch.add, operator.iadd), "mul_": partial(_operator, torch.mul, operator.imul),
}  # fmt: skip
