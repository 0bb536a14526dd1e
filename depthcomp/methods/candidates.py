"""Candidates of a compression, priced by a table: the rewrites that save enough to be tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from dp_solver import Chain, frontier
from fx_passes import SpanChoice
from fx_passes.kinds import kind_of
from latency_tables import LatencyTable, OperatorSignature

__all__ = ["PricedCandidates", "choices_on_frontier", "operators_of", "problem_of", "worthwhile"]

LEAST_SAVING = 0.005  # share of the network's latency; smaller savings are lost in measurement noise
LEAST_STEP = 0.001  # share of the network's latency; with fewer channels a layer must save so much more


@dataclass(frozen=True, slots=True)
class PricedCandidates:
    """Rewrites that the search may choose from, with the latency that they save.

    Attributes:
        table: the latencies.
        candidates: the rewrites that save enough to be tried.
        savings_ms: latency that each rewrite saves in ms, by choice; it covers all rewrites.
        total_ms: sum of the latencies of the original's operators.
    """

    table: LatencyTable
    candidates: list[Candidate]
    savings_ms: dict[SpanChoice, float]
    total_ms: float


def problem_of(prepared: Prepared, priced: PricedCandidates, losses: Mapping[SpanChoice, float]) -> Chain:
    """Return the solver's problem for the rewrites that have a loss."""
    return prepared.pricing.problem(prepared.network.tree, priced.candidates, losses, priced.table.ms)


def choices_on_frontier(
    prepared: Prepared, priced: PricedCandidates, losses: Mapping[SpanChoice, float]
) -> set[SpanChoice]:
    """Return the choices of the plans on the latency-loss frontier, given the losses of the choices to choose from."""
    found = frontier(problem_of(prepared, priced, losses))
    return {key for k in range(len(found)) for key in found.plan(k) if isinstance(key, SpanChoice)}


def operators_of(prepared: Prepared) -> set[OperatorSignature]:
    """Return every operator of the original, the prepared network and its candidates."""
    return {*prepared.pricing.signatures(prepared.candidates), *prepared.original_pricing.kept.values()}


def worthwhile(prepared: Prepared, table: LatencyTable) -> PricedCandidates:
    """Return the rewrites that save enough by a table, which must have all of `operators_of`.

    Kernels compute channels in blocks, so latency falls in steps: of widths that are about equally fast, the widest is
    left.
    """
    pricing, original = prepared.pricing, prepared.original_pricing
    total_ms = original.kept_ms(original.kept, table.ms)
    savings_ms = {candidate.choice: pricing.saving_ms(candidate, table.ms) for candidate in prepared.candidates}
    saving = [c for c in prepared.candidates if savings_ms[c.choice] > LEAST_SAVING * total_ms]
    by_span: dict[tuple[str, str], list[SpanChoice]] = {}
    for candidate in saving:
        by_span.setdefault((candidate.span.entry, candidate.span.exit), []).append(candidate.choice)
    left = {choice for several in by_span.values() for choice in _on_steps(several, savings_ms, LEAST_STEP * total_ms)}
    return PricedCandidates(table, [c for c in saving if c.choice in left], savings_ms, total_ms)


def _on_steps(
    choices: Sequence[SpanChoice], savings_ms: Mapping[SpanChoice, float], step_ms: float
) -> Iterator[SpanChoice]:
    """Yield choices of a span, without those that take more away than one before and hardly save more."""
    kept = list[SpanChoice]()
    for choice in sorted(choices, key=lambda choice: sum(kind_of(choice).takes_more(choice, c) for c in choices)):
        less = (other for other in kept if kind_of(choice).takes_more(choice, other))
        if all(savings_ms[choice] - savings_ms[other] >= step_ms for other in less):
            kept.append(choice)
            yield choice
