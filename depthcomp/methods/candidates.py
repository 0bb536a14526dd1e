"""Candidates of a compression at the latencies of a table: the rewrites that save enough to be tried."""

from __future__ import annotations

from dataclasses import dataclass

from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from fx_passes import SpanChoice
from latency_tables import LatencyTable, OperatorSignature

__all__ = ["PricedCandidates", "operators_of", "worthwhile"]

LEAST_SAVING = 0.005  # of the network's latency; what saves less is lost in the noise of measuring


@dataclass(frozen=True, slots=True)
class PricedCandidates:
    """Rewrites that the search may choose from, with what they save by a table.

    Attributes:
        table: the latencies.
        candidates: the rewrites that save enough to be tried.
        savings_ms: what each rewrite saves, those that save too little included.
        total_ms: the sum of the latencies of the original's operators.
    """

    table: LatencyTable
    candidates: list[Candidate]
    savings_ms: dict[SpanChoice, float]
    total_ms: float


def operators_of(prepared: Prepared) -> set[OperatorSignature]:
    """Return every operator whose latency decides which rewrites are worthwhile and how long a plan takes."""
    return {*prepared.pricing.signatures(prepared.candidates), *prepared.original_pricing.kept.values()}


def worthwhile(prepared: Prepared, table: LatencyTable) -> PricedCandidates:
    """Return the rewrites that save enough by a table; it must have all of `operators_of`."""
    pricing, original = prepared.pricing, prepared.original_pricing
    total_ms = original.kept_ms(original.kept, table.ms)
    savings_ms = {candidate.choice: pricing.saving_ms(candidate, table.ms) for candidate in prepared.candidates}
    candidates = [c for c in prepared.candidates if savings_ms[c.choice] > LEAST_SAVING * total_ms]
    return PricedCandidates(table, candidates, savings_ms, total_ms)
