"""Spans, latencies and losses become the solver's problem: the one place where they meet.

`fx_passes.workload` says which operators a runtime runs; here they get the names that latency tables know them by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dp_solver import Chain, Choice, Parallel
from fx_passes import Body, CapturedNetwork, Level, Operator, Piece, Slot, Span, SpanChoice, Unit
from fx_passes.kinds import kind_of
from latency_tables import OperatorSignature

__all__ = ["Candidate", "Pricing"]

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
        body: what takes the span's place.
        slots: the convolutions of the body whose weights are solved for.
        signatures: what the latency table knows the body's operators by; none for a dropped span, which costs nothing.
    """

    span: Span
    choice: SpanChoice
    body: Body
    slots: tuple[Slot, ...]
    signatures: tuple[OperatorSignature, ...]

    @property
    def piece(self) -> Piece:
        """The piece of the network that the span is."""
        assert self.span.piece is not None  # spans without have no choices
        return self.span.piece


class Pricing:
    """Knows what each operator of a captured graph, and each candidate, is called in the latency table.

    Args:
        network: a captured network.

    Attributes:
        kept: the signatures of the graph's operators as they are, by the names of their nodes.
    """

    def __init__(self, network: CapturedNetwork) -> None:
        self._workload = network.workload
        self.kept = {name: signature_of(operator) for name, operator in network.workload.kept.items()}

    def candidates(self, spans: Iterable[Span]) -> list[Candidate]:
        """Return all choices of all spans with their signatures."""
        return [self._candidate(span, span.piece, choice) for span in spans if span.piece for choice in span.choices]

    def signatures(self, candidates: Iterable[Candidate]) -> list[OperatorSignature]:
        """Return what must be measured to price the graph and the candidates, each once."""
        return sorted({*self.kept.values(), *(s for candidate in candidates for s in candidate.signatures)})

    def kept_ms(self, names: Iterable[str], price: Price) -> float:
        """Return the sum of the latencies of the operators at these nodes, in ms."""
        return math.fsum(price(self.kept[name]) for name in names if name in self.kept)

    def saving_ms(self, candidate: Candidate, price: Price) -> float:
        """Return what a candidate saves against keeping its span, in ms; negative where it is slower."""
        return self.kept_ms(candidate.span.nodes, price) - _cost_ms(candidate, price)

    def convolutions(self, span: Span) -> int:
        """Return how many convolutions stand in a span."""
        return self._workload.convolutions(span.nodes)

    def problem(
        self, tree: Level, candidates: Sequence[Candidate], losses: Mapping[SpanChoice, float], price: Price
    ) -> Chain:
        """Return the solver's problem: keeping costs its latency and no loss, a choice its latency and its loss."""
        offered: dict[Level, dict[tuple[int, int], list[Choice]]] = {}
        for candidate in candidates:
            if candidate.choice in losses:
                choice = Choice(candidate.choice, _cost_ms(candidate, price), losses[candidate.choice])
                spans = offered.setdefault(candidate.span.level, {})
                spans.setdefault((candidate.span.start, candidate.span.stop), []).append(choice)
        return self._chain(tree, offered, price)

    def _candidate(self, span: Span, piece: Piece, choice: SpanChoice) -> Candidate:
        kind = kind_of(choice)
        body = kind.body(choice, piece)
        signatures = tuple(map(signature_of, self._workload.of_body(body)))
        return Candidate(span, choice, body, kind.slots(choice, piece), signatures)

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


def signature_of(operator: Operator) -> OperatorSignature:
    """Return what a latency table knows an operator by; cropped borders just make its image smaller."""
    geometry, (batch, channels, height, width) = operator.geometry, operator.in_shape
    top, bottom, left, right = geometry.padding
    activation, residual = operator.epilogue.activation, operator.epilogue.residual
    return OperatorSignature(
        op=operator.op, batch=batch, in_channels=channels, out_channels=geometry.out_channels,
        in_size=(height + min(top, 0) + min(bottom, 0), width + min(left, 0) + min(right, 0)),
        kernel=geometry.kernel, stride=geometry.stride,
        padding=(max(top, 0), max(bottom, 0), max(left, 0), max(right, 0)), dilation=operator.dilation,
        groups=geometry.groups if operator.op == "conv" else 1,
        activation=None if activation is None else _activation_name(activation), residual=residual,
    )  # fmt: skip


def _activation_name(activation: type[nn.Module]) -> str:
    """Return the table's name of an activation, for a subclass that of its parent."""
    return next(_ACTIVATION_NAMES[base] for base in activation.__mro__ if base in _ACTIVATION_NAMES)


def _cost_ms(candidate: Candidate, price: Price) -> float:
    return math.fsum(map(price, candidate.signatures))


def _all_nodes(level: Level) -> list[str]:
    return [name for unit in level.units for name in _unit_nodes(unit)]


def _unit_nodes(unit: Unit) -> tuple[str, ...]:
    return (*unit.region, *unit.nodes)
