"""Importance from a file: what each choice costs in loss, how that was found, and what it took.

`compress_depth(..., importance="importance.json")` takes the losses from the file instead of finding them again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from depthcomp.errors import DepthCompError, PlanError, TableError
from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.settings import Settings
from depthcomp_files import JsonFormat
from fx_passes import SpanChoice
from fx_passes.kinds import decode_choice, encode_choice
from fx_passes.kinds.codec import from_version_1
from latency_tables.fleet.work import Shard

__all__ = ["NO_METHOD", "TABLE", "ImportanceTable", "Scored", "scored"]

TABLE = "importance.json"
NO_METHOD = "none"  # how losses were found where a method of compression needs none


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    choice: dict[str, Any]
    loss: float | None


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["importance table"]
    version: Literal[2]
    method: str
    settings: dict[str, int | float | str | None]
    algorithm: str = ""
    network: str
    data: str
    seed: int
    seconds: float
    choices: list[_Choice]


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a version 1 file, where a loss stood among the fields of its choice, as it is now."""
    choices = [
        {"choice": from_version_1({k: v for k, v in stored.items() if k != "loss"}), "loss": stored["loss"]}
        for stored in content["choices"]
    ]
    return {**content, "choices": choices}


_FORMAT = JsonFormat(
    what="importance table",
    schema=_Document,
    version_field="version",
    version=2,
    remedy="score the choices anew with compress_depth(..., output_dir=...)",
    upgrades={1: _from_version_1},
    error=TableError,
)


@dataclass(frozen=True, slots=True)
class ImportanceTable:
    """The loss of each choice of one network.

    Attributes:
        losses: expected rise of the loss, lower is better, by choice; NaN where it was not finite.
        method: "calibrated" or "finetuned".
        settings: those of the method.
        network: hash of the network that was scored.
        data: hash of the images.
        seed: of everything random.
        seconds: what the scores cost, over all runs and processes.
        algorithm: by which rules the method scored; empty where it is not known.
    """

    losses: Mapping[SpanChoice, float]
    method: str = "table"
    settings: Settings = field(default_factory=dict)
    network: str = ""
    data: str = ""
    seed: int = 0
    seconds: float = 0.0
    algorithm: str = ""

    @property
    def most_images(self) -> int | None:
        """As many images as their size asks for: the chosen plans are fitted on them."""
        return None

    @property
    def memory_mib(self) -> int:
        """What fits of the chosen plans may take in memory, in MiB: the default."""
        return MEMORY_MIB

    @property
    def unshareable(self) -> str:
        """Why there are no shards."""
        return "is a table of scores, of which nothing is left to share"

    def rules(self, *, refit_kept: bool) -> str:
        """Return by which rules the losses were found."""
        return self.algorithm

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices that the table has; the others are left out, which is noted.

        Raises:
            TableError: the table has a loss for none of the choices.
        """
        known = {c.choice: self.losses[c.choice] for c in context.candidates if c.choice in self.losses}
        if not known:
            raise TableError(
                f"the importance table has {len(self.losses)} choices, and none of the {len(context.candidates)} of "
                "this network; give the table of this network, or score its choices anew"
            )
        return _finite(self, known, (*context.notes, *self._doubts(context, len(known))))

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Refuse: all choices are scored.

        Raises:
            DepthCompError: always.
        """
        raise DepthCompError(f"importance {self.unshareable}")

    def _doubts(self, context: ScoringContext, known: int) -> list[str]:
        """Return why the losses may not be those of the network and the rules at hand."""
        count, notes = len(context.candidates), []
        if known < count:
            notes.append(f"{count - known} of {count} choices are missing in the importance table and were left out")
        if self.network and self.network != context.network:
            notes.append("the importance table was made for a network with other weights")
        if self.algorithm != context.rules.get(self.method, ""):
            notes.append(
                "the importance table was scored by other rules: those of another version, or of a method that refits "
                "otherwise; score anew to be sure"
            )
        return notes

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, all of it or nothing, and return the path.

        Raises:
            TableError: the path cannot be written, or holds something else.
        """
        choices = [
            {"choice": encode_choice(choice), "loss": loss if math.isfinite(loss) else None}
            for choice, loss in self.losses.items()
        ]
        content: dict[str, Any] = {
            "method": self.method, "settings": dict(self.settings), "algorithm": self.algorithm,
            "network": self.network, "data": self.data, "seed": self.seed, "seconds": self.seconds, "choices": choices,
        }  # fmt: skip
        _FORMAT.write(Path(path), content)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImportanceTable:
        """Return the table in a file.

        Raises:
            TableError: the file cannot be read, is truncated, or holds something else.
        """
        stored = _FORMAT.read(Path(path))
        try:
            losses = _losses(stored.choices)
        except PlanError as error:
            raise TableError(f"{path} is not an importance table: {error}") from error
        return cls(
            losses, stored.method, stored.settings, stored.network, stored.data, stored.seed, stored.seconds,
            stored.algorithm,
        )  # fmt: skip


def _losses(choices: Iterable[_Choice]) -> dict[SpanChoice, float]:
    losses: dict[SpanChoice, float] = {}
    for stored in choices:
        choice = decode_choice(stored.choice)
        if choice in losses:
            raise PlanError(f"{choice} stands there twice; remove one")
        losses[choice] = math.nan if stored.loss is None else stored.loss
    return losses


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


def scored(
    context: ScoringContext,
    losses: Mapping[SpanChoice, float],
    journal: ScoreJournal,
    *,
    method: str,
    settings: Settings,
) -> Scored:
    """Return losses that were just found, with the table that says how; losses that are not finite are left out.

    Args:
        context: what was scored.
        losses: by choice.
        journal: where the scores are kept.
        method: which importance found them.
        settings: those of the importance.
    """
    table = ImportanceTable(
        losses, method, settings, context.network, context.data, context.seed, journal.seconds,
        context.rules.get(method, ""),
    )  # fmt: skip
    return replace(_finite(table, losses, context.notes), journal=journal)


def _finite(table: ImportanceTable, losses: Mapping[SpanChoice, float], notes: tuple[str, ...]) -> Scored:
    finite = {choice: loss for choice, loss in losses.items() if math.isfinite(loss)}
    if len(finite) < len(losses):
        count = len(losses) - len(finite)
        notes = (*notes, f"{count} choices made the loss NaN or infinite and were left out")
    return Scored(table, finite, notes)
