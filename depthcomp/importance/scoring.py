"""Losses for the choices that are offered: scored by a method, resumed from a journal, or read from a file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from depthcomp.data.calibration import calibration_hash
from depthcomp.errors import DepthCompError, TableError
from depthcomp.fingerprint import fingerprint, network_hash
from depthcomp.fitting.memory import MEMORY_MIB, FitMemory
from depthcomp.importance.calibrated import calibrated
from depthcomp.importance.config import PRESETS, CalibratedImportance, FinetunedImportance, ImportanceConfig
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.table import ImportanceTable
from depthcomp.importance.trained import finetuned, losses_of
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from fx_passes import SpanChoice

__all__ = [
    "ALGORITHM",
    "JOURNAL",
    "TABLE",
    "Importance",
    "Scored",
    "fit_memory",
    "journal_of",
    "memory_mib",
    "most_images",
    "parse_importance",
    "score_choices",
]

JOURNAL, TABLE = "importance.jsonl", "importance.json"
ALGORITHM = 3  # rises when equal settings come to give other scores
Importance = str | os.PathLike[str] | ImportanceConfig | ImportanceTable
"""A preset's name, the path of a file, settings, or a table."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Losses of choices.

    Attributes:
        table: how they were found.
        losses: of the choices that may be chosen from, each a finite number.
        notes: what the user should know.
        journal: where the scores are kept until the table is saved.
    """

    table: ImportanceTable
    losses: Mapping[SpanChoice, float]
    notes: tuple[str, ...] = ()
    journal: ScoreJournal = field(default_factory=ScoreJournal)


def parse_importance(importance: Importance) -> ImportanceConfig | ImportanceTable:
    """Return the settings or the table that a user's `importance` stands for.

    Raises:
        TableError: the file cannot be read, or holds something else.
        DepthCompError: it is something else.
    """
    if isinstance(importance, CalibratedImportance | FinetunedImportance | ImportanceTable):
        return importance
    if isinstance(importance, str) and importance in PRESETS:
        return PRESETS[importance]
    if isinstance(importance, os.PathLike) or (isinstance(importance, str) and _names_file(importance)):
        return ImportanceTable.load(importance)
    raise DepthCompError(
        f"importance (={importance!r}) must be one of {', '.join(map(repr, PRESETS))}, settings such as "
        "FinetunedImportance(steps=100), or the path of an importance.json"
    )


def _names_file(text: str) -> bool:
    return text.endswith(".json") or Path(text).is_file()


def most_images(importance: ImportanceConfig | ImportanceTable) -> int | None:
    """Return how many images a method reads at most; None for as many as their size asks for."""
    return None if isinstance(importance, ImportanceTable) else importance.images


def memory_mib(importance: ImportanceConfig | ImportanceTable) -> int:
    """Return what fits may take in memory; a method that has no say in that leaves it at the default."""
    return importance.memory_mib if isinstance(importance, CalibratedImportance) else MEMORY_MIB


def fit_memory(prepared: Prepared, importance: ImportanceConfig | ImportanceTable) -> FitMemory:
    """Return the memory that fits on the prepared images may take."""
    return FitMemory(prepared.calibration.count, memory_mib(importance))


def score_choices(
    prepared: Prepared,
    candidates: Sequence[Candidate],
    savings_ms: Mapping[SpanChoice, float],
    importance: ImportanceConfig | ImportanceTable,
    *,
    refit_kept: bool = True,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scored:
    """Return the losses of candidates; fits that memory has no room for are left out, and that is noted.

    Args:
        prepared: the network and its images.
        candidates: what to score.
        savings_ms: what each choice saves, in ms.
        importance: the method, or a table to take the losses from.
        refit_kept: whether kept convolutions that read a change are refitted for its score, as they will be where the
            plan is carried out.
        folder: where finished scores are kept in importance.jsonl, from which a run that was killed resumes with the
            same result; None to keep none.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        DataError: the network's own outputs on the images are not finite.
        TableError: a file cannot be read or written, or a table has no loss for any candidate.
    """
    memory = fit_memory(prepared, importance)
    candidates, notes = memory.fitting(candidates)
    if isinstance(importance, ImportanceTable):
        same = importance.algorithm == _algorithm(importance.method, refit_kept)
        return _from_table(importance, candidates, network_hash(prepared.network.gm), notes, same_rules=same)
    journal = journal_of(prepared, candidates, importance, folder, seed, refit_kept=refit_kept)
    if isinstance(importance, FinetunedImportance):
        finetuned(
            prepared.captured, candidates, prepared.calibration, importance, journal, seed=seed, progress=progress
        )
        losses = losses_of(prepared.captured, candidates, importance, journal.scores)
    else:
        losses = calibrated(
            prepared.network, candidates, prepared.calibration, savings_ms,
            refit_kept=refit_kept, seed=seed, progress=progress, journal=journal, memory=memory,
        )  # fmt: skip
    method = "finetuned" if isinstance(importance, FinetunedImportance) else "calibrated"
    table = ImportanceTable(
        losses,
        method,
        asdict(importance),
        network_hash(prepared.network.gm),
        calibration_hash(prepared.calibration),
        seed,
        journal.seconds,
        _algorithm(method, refit_kept),
    )
    return replace(_scored(table, losses, notes), journal=journal)


def journal_of(
    prepared: Prepared,
    candidates: Sequence[Candidate],
    config: ImportanceConfig,
    folder: Path | None,
    seed: int,
    *,
    refit_kept: bool,
) -> ScoreJournal:
    """Return the journal in a folder of the scores that depend on all this."""
    parts = [
        f"{ALGORITHM} torch {torch.__version__} threads {torch.get_num_threads()}",
        network_hash(prepared.captured.gm), calibration_hash(prepared.calibration), repr(config), str(seed),
    ]  # fmt: skip
    if isinstance(config, CalibratedImportance):
        parts += [f"readers refitted: {refit_kept}", *(str(c.choice) for c in candidates)]  # these share sums
    return ScoreJournal(None if folder is None else folder / JOURNAL, fingerprint(*parts))


def _algorithm(method: str, refit_kept: bool) -> str:
    """Return by which rules a method scores; of a table of another's making they are not known."""
    if method not in ("calibrated", "finetuned"):
        return ""
    return f"{ALGORITHM}, readers refitted" if method == "calibrated" and refit_kept else f"{ALGORITHM}"


def _from_table(
    table: ImportanceTable,
    candidates: Sequence[Candidate],
    network: str,
    before: Sequence[str],
    *,
    same_rules: bool,
) -> Scored:
    known = {c.choice: table.losses[c.choice] for c in candidates if c.choice in table.losses}
    if not known:
        raise TableError(
            f"the importance table has {len(table.losses)} choices, and none of the {len(candidates)} that this "
            "network offers; give the table of this network, or score its choices anew"
        )
    notes = [*before]
    if len(known) < len(candidates):
        notes.append(
            f"{len(candidates) - len(known)} of {len(candidates)} choices stand not in the importance table and were "
            "left out"
        )
    if table.network and table.network != network:
        notes.append("the importance table was made for a network with other weights")
    if not same_rules:
        notes.append(
            "the importance table was made by other rules than those that hold here, those of an earlier version or of "
            "a method that refits otherwise; score anew to be sure"
        )
    return _scored(table, known, notes)


def _scored(table: ImportanceTable, losses: Mapping[SpanChoice, float], notes: Sequence[str]) -> Scored:
    finite = {choice: loss for choice, loss in losses.items() if math.isfinite(loss)}
    if len(finite) < len(losses):
        notes = [*notes, f"{len(losses) - len(finite)} choices made the loss NaN or infinite and were left out"]
    return Scored(table, finite, tuple(notes))
