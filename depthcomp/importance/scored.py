"""Losses of scored choices, with their table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from depthcomp.importance.context import ScoringContext
from depthcomp.importance.estimate_check import EstimateCheck
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import ImportanceTable
from fx_passes import SpanChoice

__all__ = ["Scored", "finite_of", "scored"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Losses of scored choices.

    Attributes:
        table: all losses, with how they were found.
        losses: the finite losses, of the choices to choose from.
        notes: notes for the user.
        journal: the journal that keeps the scores until the table is saved.
    """

    table: ImportanceTable
    losses: Mapping[SpanChoice, float]
    notes: tuple[str, ...] = ()
    journal: ScoreJournal = field(default_factory=ScoreJournal)


def scored(
    context: ScoringContext,
    losses: Mapping[SpanChoice, float],
    journal: ScoreJournal,
    *,
    method: str,
    settings: Settings,
    check: EstimateCheck | None = None,
    profiting: frozenset[SpanChoice] | None = None,
) -> Scored:
    """Return new losses with their table; losses that are not finite are left out.

    Args:
        context: the context of the scoring.
        losses: the losses, by choice.
        journal: the journal of the scores.
        method: name of the importance.
        settings: settings of the importance.
        check: how well estimated losses agree with true ones; None for true losses.
        profiting: the choices that lose less where the kept layers behind them are refitted; None where unknown.
    """
    table = ImportanceTable(
        losses, method, settings, context.network, context.data, context.seed, journal.seconds,
        context.rules.get(method, ""), check, profiting,
    )  # fmt: skip
    return replace(finite_of(table, losses, context.notes), journal=journal)


def finite_of(table: ImportanceTable, losses: Mapping[SpanChoice, float], notes: tuple[str, ...]) -> Scored:
    """Return losses with their table, without those that are not finite; a note counts them."""
    finite = {choice: loss for choice, loss in losses.items() if math.isfinite(loss)}
    if len(finite) < len(losses):
        count = len(losses) - len(finite)
        notes = (*notes, f"{count} choices were left out, as their loss is NaN or infinite")
    return Scored(table, finite, notes)
