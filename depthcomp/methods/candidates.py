"""Candidates of a compression, priced by a table: the rewrites that save enough to be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from dp_solver import Chain, frontier
from fx_passes import SpanChoice
from latency_tables import LatencyTable, OperatorSignature

__all__ = ["PricedCandidates", "choices_on_frontier", "operators_of", "problem_of", "worthwhile"]

LEAST_SAVING = 0.005  # share of the network's latency; smaller savings are lost in measurement noise


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
    """Return the rewrites that save enough by a table, which must have all of `operators_of`."""
    pricing, original = prepared.pricing, prepared.original_pricing
    total_ms = original.kept_ms(original.kept, table.ms)
    savings_ms = {candidate.choice: pricing.saving_ms(candidate, table.ms) for candidate in prepared.candidates}
    candidates = [c for c in prepared.candidates if savings_ms[c.choice] > LEAST_SAVING * total_ms]
    return PricedCandidates(table, candidates, savings_ms, total_ms)
