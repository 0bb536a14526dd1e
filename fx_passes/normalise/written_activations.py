"""Activations written out, such as `x * sigmoid(x)` or `x.clamp(0, 6)`, as the layers that compute them.

A chain of pointwise operators with one tensor input is a function of a number. It is recognised by its values, so every
way to write an activation is, autograd functions in modules of the user too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.graph_edit import add_module, redirect
from fx_passes.operators import known_layer

__all__ = ["WrittenActivations"]

LONGEST = 12  # operators; GELU by tanh takes nine
_RELATIVE, _ABSOLUTE = 1e-6, 1e-12  # in double precision; constants may be rounded to single
_FAR = 1e4  # where bounds and slopes are read
_NAMES = """
    abs add clamp clamp_max clamp_min clip div divide erf exp expm1 ge gt le log log1p lt max maximum min minimum mul
    multiply neg pow reciprocal relu rsqrt rsub sigmoid softplus sqrt square sub subtract tanh true_divide where
"""


class WrittenActivations(PassBase):
    """Put a layer in the place of each chain of pointwise operators that computes an activation."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        replaced: set[fx.Node] = set()
        order = {node: index for index, node in enumerate(graph_module.graph.nodes)}
        for node in reversed(order):
            found = None if node in replaced else _written(graph_module, node, order)
            if found is not None:
                activation, source, chain = found
                target = add_module(graph_module, f"{node.name}_module", activation)
                redirect(node, target=target, args=(source,))
                replaced |= chain
        return PassResult(graph_module, bool(replaced))


def _written(
    gm: fx.GraphModule, node: fx.Node, order: Mapping[fx.Node, int]
) -> tuple[nn.Module, fx.Node, set[fx.Node]] | None:
    """Return the activation that ends at a node, the tensor that it reads, and its operators; None where none does."""
    if known_layer(gm, node) is not None:
        return None
    for source, chain in _chains(gm, node, order):
        activation = _recognised(lambda value, source=source: _computed(gm, node, {source: value}))  # type: ignore[misc]
        if activation is not None:
            return activation, source, chain
    return None


def _chains(gm: fx.GraphModule, node: fx.Node, order: Mapping[fx.Node, int]) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Yield ever longer chains that end at a node and read one tensor, with that tensor."""
    chain, last = set[fx.Node](), node
    while len(chain) < LONGEST and _is_pointwise(gm, last) and (not chain or last.users.keys() <= chain):
        chain.add(last)
        read = {source for each in chain for source in each.all_input_nodes} - chain
        tensors = [source for source in read if not _is_number(gm, source)]
        if len(tensors) == 1 and _shape(tensors[0]) == _shape(node):
            yield tensors[0], set(chain)
        if not tensors:
            return
        last = max(tensors, key=order.__getitem__)


def _is_pointwise(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node's operator works number by number, as far as its name tells; the values tell the rest."""
    if node.op == "call_method":
        return node.target in _NAMES.split()
    if node.op == "call_function":
        return node.target in _functions()
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module is not None and not any(True for _ in module.parameters()) and len(node.all_input_nodes) == 1


@cache
def _functions() -> frozenset[Callable[..., Any]]:
    rooms = (torch, operator, F)
    found = (getattr(room, name, None) for room in rooms for name in (*_NAMES.split(), "truediv", "hardtanh", "relu6"))
    return frozenset(function for function in found if function is not None)


def _is_number(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node fetches a tensor of one number that is not trained."""
    if node.op != "get_attr" or _shape(node) is None:
        return False
    fetched = _fetched(gm, node)
    return fetched.numel() == 1 and not isinstance(fetched, nn.Parameter)


def _fetched(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(gm.get_submodule(owner), name)
    return value


def _shape(node: fx.Node) -> torch.Size | None:
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _computed(gm: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor:
    """Return the value of a node, computed from known ones; `known` takes up what is computed on the way."""
    if node not in known:
        if node.op == "get_attr":
            known[node] = _fetched(gm, node).double()
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: _computed(gm, source, known))
            known[node] = getattr(fx.Interpreter(gm), node.op)(node.target, args, kwargs)
    return known[node]


@cache
def _probe() -> Tensor:
    """Return values to compare functions on: dense around 0, tiny and huge ones of both signs, on no regular grid."""
    generator = torch.Generator().manual_seed(0)
    dense = 60 * torch.rand(3001, generator=generator, dtype=torch.float64) - 30
    sizes = 10 ** (24 * torch.rand(1499, generator=generator, dtype=torch.float64) - 12)
    return torch.cat([dense, sizes, -sizes, torch.zeros(1, dtype=torch.float64)]).reshape(2, 3, 8, 125)


def _recognised(function: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """Return the activation with the values of a function; None where none has them, and for the identity."""
    values = _probe()
    try:
        with torch.no_grad():
            wanted = function(values)
            candidates = list(_candidates(function))
    except Exception:  # a user's module may take only what the network feeds it
        return None
    if _agree(values, wanted):
        return None
    return next((each for each in candidates if _agree(each(values), wanted)), None)


def _candidates(function: Callable[[Tensor], Tensor]) -> Iterator[nn.Module]:
    """Yield the activations that a function may be, their numbers read from its values."""
    low, below, high = (float(function(torch.full((1, 1, 1, 1), at, dtype=torch.float64))) for at in (-_FAR, -1, _FAR))
    yield from (nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.GELU(), nn.GELU(approximate="tanh"))
    yield from (nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.SELU(), nn.LogSigmoid())
    if below:
        yield nn.LeakyReLU(-below)
        yield nn.ELU(-low)
    if low < high < _FAR:
        yield nn.Hardtanh(low, high)


def _agree(found: Tensor, wanted: object) -> bool:
    """Say whether values are those wanted, where these are finite: what is written out may overflow far away."""
    if not isinstance(wanted, Tensor) or wanted.shape != found.shape or not wanted.is_floating_point():
        return False
    finite = wanted.isfinite()
    return torch.allclose(found[finite], wanted[finite].double(), _RELATIVE, _ABSOLUTE)
