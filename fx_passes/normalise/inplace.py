"""Out-of-place forms of the layers and operations that overwrite their input."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from depthcomp_errors import CaptureError
from fx_passes.module_paths import module_path
from fx_passes.operators import called_module

__all__ = ["DropInplace"]

_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow, operator.imatmul: operator.matmul, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
_METHODS = {f"__{name.__name__}__": f"__{twin.__name__.rstrip('_')}__" for name, twin in _OPERATORS.items()}
_WITHOUT_TWIN = ("__setitem__", operator.setitem)


class DropInplace(PassBase):
    """Replace operations that overwrite a tensor by forms that return a new one; later consumers read the new one.

    Other rewrites may then move consumers of the old values behind the operation. If an operation has no form that
    returns a new tensor, its input must have no other consumer.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        order = {node: position for position, node in enumerate(graph_module.graph.nodes)}
        found = [node for node in order if _overwrites(graph_module, node)]
        for node in found:
            later = {user for user in node.all_input_nodes[0].users if order[user] > order[node]}
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)
            _return_anew(node)
        for module in graph_module.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        return PassResult(graph_module, bool(found))


def _overwrites(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node writes its result into the first tensor that it reads."""
    if not node.all_input_nodes:
        return False
    if node.target in _WITHOUT_TWIN:
        return True
    if node.op == "call_method":
        return node.target in _METHODS or (str(node.target).endswith("_") and not str(node.target).endswith("__"))
    if node.op == "call_function":
        return node.target in _OPERATORS or _asks_inplace(node) or _is_inplace_function(node.target)
    return bool(getattr(called_module(gm, node), "inplace", False))


def _is_inplace_function(target: Any) -> bool:
    """Say whether a function is one of torch's whose name ends like an in-place function's."""
    name = getattr(target, "__name__", "")
    return name.endswith("_") and not name.endswith("__") and _home(target) is not None


def _home(target: Any) -> Any:
    """Return the torch module that holds a function under its own name."""
    return next((home for home in (F, torch, torch.nn.init) if getattr(home, target.__name__, None) is target), None)


def _asks_inplace(node: fx.Node) -> bool:
    """Say whether a functional layer is called with `inplace=True`, by name or by position."""
    return {**dict(zip(_parameters(node), node.args, strict=False)), **node.kwargs}.get("inplace") is True


def _parameters(node: fx.Node) -> list[str]:
    return list(inspect.signature(node.target).parameters) if inspect.isfunction(node.target) else []


def _return_anew(node: fx.Node) -> None:
    """Turn an operation that overwrites its input into the one that returns a new tensor."""
    if node.op == "call_module":
        return  # `call` switches its module
    if node.op == "call_function" and _asks_inplace(node):
        _switch_off(node)
        return
    twin = _twin(node)
    if twin is not None:
        node.target = twin
    elif len(node.all_input_nodes[0].users) > 1:
        raise CaptureError(
            f"{module_path(node)} overwrites its input by {getattr(node.target, '__name__', node.target)} while other "
            f"operations read {module_path(node.all_input_nodes[0])}; rewrite that line of the forward to make "
            "a new tensor, with torch.where, torch.cat or a multiplication"
        )


def _switch_off(node: fx.Node) -> None:
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        node.update_arg(_parameters(node).index("inplace"), False)


def _twin(node: fx.Node) -> Any:
    """Return the target that computes the same into a new tensor, or None where there is none."""
    if node.target in _WITHOUT_TWIN:
        return None
    if node.op == "call_method":
        name = _METHODS.get(str(node.target), str(node.target).removesuffix("_"))
        return name if callable(getattr(Tensor, name, None)) else None
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    return getattr(_home(node.target), node.target.__name__.removesuffix("_"), None)  # type: ignore[union-attr]
