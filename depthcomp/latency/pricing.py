"""Spans, latencies and losses become the solver's problem: the one place where they meet.

A convolution is priced as it will really run: at its true input size, its normalisation folded, its activation
and the residual sum that runtimes fuse into it included. A sum belongs to the operand that is computed last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from dp_solver import Chain, Choice, Parallel
from fx_passes import Level, Span, SpanChoice, Unit
from fx_passes.affine import AffineConv, conv_padding, crop_kernel
from fx_passes.operators import (
    NORMS,
    Role,
    affine_operator,
    follows_convolution,
    image_shape,
    known_layer,
    role,
)
from latency_tables import OperatorSignature

__all__ = ["Candidate", "Pricing", "candidates_of"]

Price = Callable[[OperatorSignature], float]
_ACTIVATION_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardtanh: "hardtanh", nn.LeakyReLU: "leaky_relu", nn.PReLU: "prelu",
    nn.ELU: "elu", nn.CELU: "celu", nn.SELU: "selu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Mish: "mish",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.Softplus: "softplus", nn.Softsign: "softsign", nn.LogSigmoid: "softplus",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """One choice for a span.

    Attributes:
        span: where.
        choice: what is done there.
        operator: the convolution that takes the span's place, on the meta device; None for a dropped span.
        signature: what the latency table knows that convolution by; None for a dropped span, which costs nothing.
    """

    span: Span
    choice: SpanChoice
    operator: AffineConv | None
    signature: OperatorSignature | None


class Pricing:
    """Knows what each operator of a captured graph, and each candidate, is called in the latency table.

    Args:
        gm: a captured graph; it is not changed.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._nodes = {node.name: node for node in gm.graph.nodes}
        self._order = {name: position for position, name in enumerate(self._nodes)}
        self.kept = {name: s for name, node in self._nodes.items() if (s := self._kept_signature(node)) is not None}

    def candidates(self, spans: Iterable[Span]) -> list[Candidate]:
        """Return all choices of all spans with their signatures."""
        return [candidate for span in spans for candidate in candidates_of(span, self._epilogue)]

    def signatures(self, candidates: Iterable[Candidate]) -> list[OperatorSignature]:
        """Return what must be measured to price the graph and the candidates, each once."""
        replaced = [candidate.signature for candidate in candidates if candidate.signature is not None]
        return sorted({*self.kept.values(), *replaced})

    def kept_ms(self, names: Iterable[str], price: Price) -> float:
        """Return the sum of the latencies of the operators at these nodes, in ms."""
        return math.fsum(price(self.kept[name]) for name in names if name in self.kept)

    def saving_ms(self, candidate: Candidate, price: Price) -> float:
        """Return what a candidate saves against keeping its span, in ms; negative where it is slower."""
        cost = 0.0 if candidate.signature is None else price(candidate.signature)
        return self.kept_ms(candidate.span.nodes, price) - cost

    def convolutions(self, span: Span) -> int:
        """Return how many convolutions stand in a span."""
        return sum(isinstance(known_layer(self._gm, self._nodes[name]), nn.Conv2d) for name in span.nodes)

    def problem(
        self, tree: Level, candidates: Sequence[Candidate], losses: Mapping[SpanChoice, float], price: Price
    ) -> Chain:
        """Return the solver's problem: keeping costs its latency and no loss, a choice its latency and its loss."""
        offered: dict[Level, dict[tuple[int, int], list[Choice]]] = {}
        for candidate in candidates:
            if candidate.choice in losses:
                cost = 0.0 if candidate.signature is None else price(candidate.signature)
                choice = Choice(candidate.choice, cost, losses[candidate.choice])
                spans = offered.setdefault(candidate.span.level, {})
                spans.setdefault((candidate.span.start, candidate.span.stop), []).append(choice)
        return self._chain(tree, offered, price)

    def _chain(
        self, level: Level, offered: Mapping[Level, Mapping[tuple[int, int], list[Choice]]], price: Price
    ) -> Chain:
        spans: dict[tuple[int, int], list[Choice | Parallel]] = {}
        for index, unit in enumerate(level.units):
            cost = self.kept_ms([*unit.region, *unit.nodes], price)
            kept: Choice | Parallel = Choice(None, cost, 0.0)
            if unit.branches:
                inner = [name for branch in unit.branches for name in _all_nodes(branch)]
                join = cost - self.kept_ms(inner, price)
                branches = tuple(self._chain(branch, offered, price) for branch in unit.branches)
                kept = Parallel(max(join, 0.0), branches)
            spans[index, index + 1] = [kept]
        for place, choices in offered.get(level, {}).items():
            spans.setdefault(place, []).extend(choices)
        return Chain(len(level.units), spans)

    def _epilogue(self, name: str) -> tuple[str | None, bool]:
        """Return the activation and whether there is a residual sum that a runtime fuses after a tensor."""
        node, residual = self._nodes[name], False
        while len(node.users) == 1:
            user = next(iter(node.users))
            kind = role(self._gm, user)
            if kind is Role.ACTIVATION:
                return _activation_name(known_layer(self._gm, user)), residual
            if kind is Role.ADD and not residual and self._computed_last(node, user):
                residual = True
            elif kind is not Role.PASS and not isinstance(known_layer(self._gm, user), NORMS):
                break
            node = user
        return None, residual

    def _computed_last(self, node: fx.Node, join: fx.Node) -> bool:
        return all(self._order[node.name] >= self._order[other.name] for other in join.all_input_nodes)

    def _kept_signature(self, node: fx.Node) -> OperatorSignature | None:
        """Return the signature of a node that costs time as it is, or None where it is not priced."""
        module, shape = known_layer(self._gm, node), _read_shape(node)
        if shape is None or role(self._gm, node) is not Role.AFFINE:
            return None
        epilogue = self._epilogue(node.name)
        if isinstance(module, nn.Conv2d):
            stride, dilation = (module.stride[0], module.stride[1]), (module.dilation[0], module.dilation[1])
            operator = AffineConv(module.weight, module.weight, stride, conv_padding(module), module.groups)
            return _signature("conv", operator, shape, epilogue, dilation=dilation)
        operator = affine_operator(self._gm, node, shape[1], device="meta")
        if isinstance(module, nn.AvgPool2d):
            return _signature("avg_pool", operator, shape, epilogue)
        if isinstance(module, NORMS) and not follows_convolution(self._gm, node):
            return _signature("scale", operator, shape, epilogue)
        return None


def _activation_name(activation: nn.Module | None) -> str:
    """Return the table's name of an activation, for a subclass that of its parent."""
    return next(_ACTIVATION_NAMES[kind] for kind in type(activation).__mro__ if kind in _ACTIVATION_NAMES)


def candidates_of(span: Span, epilogue: Callable[[str], tuple[str | None, bool]]) -> list[Candidate]:
    """Return the choices of one span, priced with the epilogue that follows its core."""
    found = []
    for choice in span.choices:
        if choice.kernel is None or span.operator is None or span.in_shape is None:
            found.append(Candidate(span, choice, None, None))
            continue
        operator = crop_kernel(span.operator, choice.kernel)
        signature = _signature("conv", operator, span.in_shape, epilogue(span.core))
        found.append(Candidate(span, choice, operator, signature))
    return found


def _all_nodes(level: Level) -> list[str]:
    return [name for unit in level.units for name in _unit_nodes(unit)]


def _unit_nodes(unit: Unit) -> tuple[str, ...]:
    return (*unit.region, *unit.nodes)


def _read_shape(node: fx.Node) -> tuple[int, int, int, int] | None:
    source = node.args[0] if node.args else None
    return image_shape(source) if isinstance(source, fx.Node) else None


def _signature(
    op: str,
    operator: AffineConv,
    shape: tuple[int, int, int, int],
    epilogue: tuple[str | None, bool],
    dilation: tuple[int, int] = (1, 1),
) -> OperatorSignature:
    """Return the signature of an operator on images of `shape`; cropped borders just make the image smaller."""
    top, bottom, left, right = operator.padding
    in_size = (shape[2] + min(top, 0) + min(bottom, 0), shape[3] + min(left, 0) + min(right, 0))
    return OperatorSignature(
        op=op, batch=shape[0], in_channels=shape[1], out_channels=operator.out_channels, in_size=in_size,  # type: ignore[arg-type]
        kernel=operator.kernel, stride=operator.stride,
        padding=(max(top, 0), max(bottom, 0), max(left, 0), max(right, 0)), dilation=dilation,
        groups=operator.groups if op == "conv" else 1, activation=epilogue[0], residual=epilogue[1],
    )  # fmt: skip
