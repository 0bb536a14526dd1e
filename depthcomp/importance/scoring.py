"""Scoring of choices with the importance that a user gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from depthcomp.errors import DepthCompError
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.contenders import OnFrontier
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.protocol import Importance
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scored import Scored
from depthcomp.importance.stored_importance import StoredImportance
from depthcomp.importance.table import ImportanceTable
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from fx_passes import SpanChoice

__all__ = ["ImportanceLike", "parse_importance", "score_choices", "scoring_context"]

ImportanceLike = str | os.PathLike[str] | ImportanceTable | Importance
"""A preset's name, the path of an importance.json, a table of losses, or an importance object."""


def parse_importance(importance: ImportanceLike) -> Importance:
    """Return the importance that a user's argument names.

    Raises:
        TableError: the file cannot be read, or holds something else.
        DepthCompError: the argument is no preset, path or importance.
    """
    if isinstance(importance, str) and importance in PRESETS:
        return PRESETS[importance]
    if isinstance(importance, os.PathLike) or (isinstance(importance, str) and _names_file(importance)):
        return StoredImportance(ImportanceTable.load(importance))
    if isinstance(importance, ImportanceTable):
        return StoredImportance(importance)
    if isinstance(importance, type):
        raise DepthCompError(
            f"importance (={importance.__name__}) is a class; give an instance of it, {importance.__name__}(...)"
        )
    if isinstance(importance, str) or not isinstance(importance, Importance):
        raise DepthCompError(
            f"importance (={importance!r}) must be one of {', '.join(map(repr, PRESETS))}, an instance of "
            "a class that inherits from depthcomp.importance.protocol.Importance, or the path of an importance.json"
        )
    return importance


def _names_file(text: str) -> bool:
    return text.endswith(".json") or Path(text).is_file()


def scoring_context(
    prepared: Prepared,
    candidates: Sequence[Candidate],
    savings_ms: Mapping[SpanChoice, float],
    importance: Importance,
    *,
    refit_kept: bool = True,
    on_frontier: OnFrontier | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
    orders: type[ChannelOrders] = ChannelOrders,
) -> ScoringContext:
    """Return the context of a scoring, without fits that exceed the memory; a note counts those.

    The arguments are as for `score_choices`; `orders` decides which inner channels stay.
    """
    memory = FitMemory(prepared.calibration.count, importance.memory_mib)
    fitting, notes = memory.fitting(candidates)
    channels = orders(prepared.network, prepared.calibration, seed=seed, memory=memory, progress=progress)
    return ScoringContext(
        prepared, fitting, savings_ms, memory, channels, _rules(importance, refit_kept), notes,
        refit_kept=refit_kept, on_frontier=on_frontier, folder=folder, seed=seed, progress=progress,
    )  # fmt: skip


def score_choices(
    prepared: Prepared,
    candidates: Sequence[Candidate],
    savings_ms: Mapping[SpanChoice, float],
    importance: ImportanceLike,
    *,
    refit_kept: bool = True,
    on_frontier: OnFrontier | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scored:
    """Return the losses of candidates; fits that exceed the memory are left out, and a note counts them.

    Args:
        prepared: the network and its images.
        candidates: the choices to score.
        savings_ms: latency that each choice saves, in ms.
        importance: a preset, a file or table, or an importance object.
        refit_kept: whether the score of a change includes a refit of the kept layers that read it. The refit of a
            plan should agree.
        on_frontier: returns the choices on the frontier, given losses; an importance may leave out choices that cannot
            enter it. None to score all.
        folder: folder for importance.jsonl, the journal of finished scores; a killed run resumes from it with an equal
            result. None to keep no journal.
        seed: seed of everything random.
        progress: called as (what, done, total).

    Raises:
        DataError: the network's own outputs on the images are not finite.
        TableError: a file cannot be read or written, or a table has no loss for any candidate.
    """
    chosen = parse_importance(importance)
    context = scoring_context(
        prepared, candidates, savings_ms, chosen,
        refit_kept=refit_kept, on_frontier=on_frontier, folder=folder, seed=seed, progress=progress or silent,
    )  # fmt: skip
    return chosen.score_all(context)


def _rules(importance: Importance, refit_kept: bool) -> dict[str, str]:
    """Return the current scoring rules of each method."""
    presets = {preset.method: preset.rules(refit_kept=refit_kept) for preset in PRESETS.values()}
    return {importance.method: importance.rules(refit_kept=refit_kept), **presets}
