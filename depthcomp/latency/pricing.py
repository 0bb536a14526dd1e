"""Pricing of spans and choices, and the solver's problem made of their latencies and losses.

`fx_passes.workload` gives the operators that a runtime runs; this module translates them to signatures of latency
tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
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
        span: the span.
        choice: the choice.
        body: the subgraph in the span's place.
        slots: the layers of the body whose weights are solved for.
        signatures: signatures of the body's operators; none for a dropped span, which takes no time.
    """

    span: Span
    choice: SpanChoice
    body: Body
    slots: tuple[Slot, ...]
    signatures: tuple[OperatorSignature, ...]

    @property
    def piece(self) -> Piece:
        """The span's piece of the network."""
        assert self.span.piece is not None  # a span without a piece has no choices
        return self.span.piece


class Pricing:
    """Signatures of a captured network's operators and candidates, and their latencies by a table.

    Args:
        network: a captured network.
        names: names of the nodes to price; None for all.

    Attributes:
        kept: signatures of the network's own operators, by node name.
    """

    def __init__(self, network: CapturedNetwork, names: Container[str] | None = None) -> None:
        self._workload = network.workload
        priced = {name: each for name, each in network.workload.kept.items() if names is None or name in names}
        self.kept = {name: signature_of(operator) for name, operator in priced.items()}

    def candidates(self, spans: Iterable[Span]) -> list[Candidate]:
        """Return all choices of all spans with their signatures."""
        return [self._candidate(span, span.piece, choice) for span in spans if span.piece for choice in span.choices]

    def signatures(self, candidates: Iterable[Candidate]) -> list[OperatorSignature]:
        """Return all signatures that price the network and the candidates, each once."""
        return sorted({*self.kept.values(), *(s for candidate in candidates for s in candidate.signatures)})

    def kept_ms(self, names: Iterable[str], price: Price) -> float:
        """Return the sum of the latencies of the operators at these nodes, in ms."""
        return math.fsum(price(self.kept[name]) for name in names if name in self.kept)

    def saving_ms(self, candidate: Candidate, price: Price) -> float:
        """Return the ms that a candidate saves against keeping its span; negative where it is slower."""
        return self.kept_ms(candidate.span.nodes, price) - _cost_ms(candidate, price)

    def convolutions(self, span: Span) -> int:
        """Return the number of convolutions in a span."""
        return self._workload.convolutions(span.nodes)

    def problem(
        self, tree: Level, candidates: Sequence[Candidate], losses: Mapping[SpanChoice, float], price: Price
    ) -> Chain:
        """Return the solver's problem: each unit kept without loss, or a choice with its latency and loss."""
        by_level: dict[Level, dict[tuple[int, int], list[Choice]]] = {}
        for candidate in candidates:
            if candidate.choice in losses:
                choice = Choice(candidate.choice, _cost_ms(candidate, price), losses[candidate.choice])
                spans = by_level.setdefault(candidate.span.level, {})
                spans.setdefault((candidate.span.start, candidate.span.stop), []).append(choice)
        return self._chain(tree, by_level, price)

    def _candidate(self, span: Span, piece: Piece, choice: SpanChoice) -> Candidate:
        kind = kind_of(choice)
        body = kind.body(choice, piece)
        signatures = tuple(map(signature_of, kind.operators(choice, piece)))
        return Candidate(span, choice, body, kind.slots(choice, piece), signatures)

    def _chain(
        self, level: Level, by_level: Mapping[Level, Mapping[tuple[int, int], list[Choice]]], price: Price
    ) -> Chain:
        spans: dict[tuple[int, int], list[Choice | Parallel]] = {}
        for index, unit in enumerate(level.units):
            cost = self.kept_ms([*unit.region, *unit.nodes], price)
            kept: Choice | Parallel = Choice(None, cost, 0.0)
            if unit.branches:
                inner = [name for branch in unit.branches for name in _all_nodes(branch)]
                join = cost - self.kept_ms(inner, price)
                branches = tuple(self._chain(branch, by_level, price) for branch in unit.branches)
                kept = Parallel(max(join, 0.0), branches)
            spans[index, index + 1] = [kept]
        for place, choices in by_level.get(level, {}).items():
            spans.setdefault(place, []).extend(choices)
        return Chain(len(level.units), spans)


def signature_of(operator: Operator) -> OperatorSignature:
    """Return the signature of an operator; a cropped border makes its input smaller."""
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
        signals=operator.signals,
    )  # fmt: skip


def _activation_name(activation: type[nn.Module]) -> str:
    """Return the table's name of an activation; a subclass has the name of its parent."""
    return next(_ACTIVATION_NAMES[base] for base in activation.__mro__ if base in _ACTIVATION_NAMES)


def _cost_ms(candidate: Candidate, price: Price) -> float:
    return math.fsum(map(price, candidate.signatures))


def _all_nodes(level: Level) -> list[str]:
    return [name for unit in level.units for name in _unit_nodes(unit)]


def _unit_nodes(unit: Unit) -> tuple[str, ...]:
    return (*unit.region, *unit.nodes)
