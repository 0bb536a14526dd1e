"""Tables of losses in files, with how the losses were found.

`compress_depth(..., importance="importance.json")` takes the losses from the file instead of scoring again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from depthcomp.errors import PlanError, TableError
from depthcomp.importance.estimate_check import EstimateCheck
from depthcomp.importance.settings import Settings
from depthcomp_files import JsonFormat
from fx_passes import SpanChoice
from fx_passes.kinds import decode_choice, encode_choice
from fx_passes.kinds.codec import from_version_1

__all__ = ["NO_METHOD", "TABLE", "ImportanceTable"]

TABLE = "importance.json"
NO_METHOD = "none"  # where the compression method needs no losses


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    choice: dict[str, Any]
    loss: float | None
    profits: bool | None = None


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    choices: int
    rank_correlation: float | None
    median_ratio: float
    low_ratio: float
    high_ratio: float


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
    check: _Check | None = None


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the content of a version 1 file, where the loss is a field of its choice."""
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
        losses: expected rise of the loss by choice, lower is better; NaN where it was not finite.
        method: name of the importance that found them, for example "calibrated" or "finetuned".
        settings: settings of that importance.
        network: hash of the scored network.
        data: hash of the images.
        seed: seed of everything random.
        seconds: wall time of the scores, over all runs and processes.
        algorithm: version of the scoring rules; empty where unknown.
        check: how well estimated losses agree with true ones; None where the losses are true ones.
        profiting: the choices that lose less where the kept layers behind them are refitted; None where unknown.
    """

    losses: Mapping[SpanChoice, float]
    method: str = "table"
    settings: Settings = field(default_factory=dict)
    network: str = ""
    data: str = ""
    seed: int = 0
    seconds: float = 0.0
    algorithm: str = ""
    check: EstimateCheck | None = None
    profiting: frozenset[SpanChoice] | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table whole or not at all, and return the path.

        Raises:
            TableError: the path cannot be written, or holds something else.
        """
        choices = [
            {"choice": encode_choice(choice), "loss": loss if math.isfinite(loss) else None, **self._profits(choice)}
            for choice, loss in self.losses.items()
        ]
        content: dict[str, Any] = {
            "method": self.method, "settings": dict(self.settings), "algorithm": self.algorithm,
            "network": self.network, "data": self.data, "seed": self.seed, "seconds": self.seconds, "choices": choices,
            "check": None if self.check is None else asdict(self.check),
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
            losses, profiting = _losses(stored.choices), _profiting(stored.choices)
        except PlanError as error:
            raise TableError(f"{path} is not an importance table: {error}") from error
        return cls(
            losses, stored.method, stored.settings, stored.network, stored.data, stored.seed, stored.seconds,
            stored.algorithm, None if stored.check is None else EstimateCheck(**stored.check.model_dump()), profiting,
        )  # fmt: skip

    def _profits(self, choice: SpanChoice) -> dict[str, bool]:
        """Return the field that tells whether a choice profits; none where that is unknown."""
        return {} if self.profiting is None else {"profits": choice in self.profiting}


def _profiting(choices: Iterable[_Choice]) -> frozenset[SpanChoice] | None:
    known = [stored for stored in choices if stored.profits is not None]
    return frozenset(decode_choice(stored.choice) for stored in known if stored.profits) if known else None


def _losses(choices: Iterable[_Choice]) -> dict[SpanChoice, float]:
    losses: dict[SpanChoice, float] = {}
    for stored in choices:
        choice = decode_choice(stored.choice)
        if choice in losses:
            raise PlanError(f"it lists {choice} twice; remove one entry")
        losses[choice] = math.nan if stored.loss is None else stored.loss
    return losses
