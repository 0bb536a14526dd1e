"""A file of importances: what each choice costs in loss, how that was found, and what it took.

`compress_depth(..., importance="importance.json")` takes the losses from there instead of finding them again.
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
from depthcomp.importance.config import PRESETS
from depthcomp_files import JsonFormat
from fx_passes import Plan, SpanChoice

__all__ = ["ImportanceTable"]


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    entry: str
    exit: str
    kind: Literal["merge", "fit", "drop"]
    kernel: tuple[int, int] | None
    end: Literal["original", "inserted", "none"]
    pruned: list[str]
    loss: float | None


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: Literal["importance table"]
    version: Literal[1]
    method: str
    settings: dict[str, int | float | str | None]
    algorithm: str = ""
    network: str
    data: str
    seed: int
    seconds: float
    choices: list[_Choice]


_FORMAT = JsonFormat(
    what="importance table",
    schema=_Document,
    version_field="version",
    version=1,
    remedy="score the choices anew with compress_depth(..., output_dir=...)",
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
    settings: Mapping[str, int | float | str | None] = field(default_factory=dict)
    network: str = ""
    data: str = ""
    seed: int = 0
    seconds: float = 0.0
    algorithm: str = ""

    @property
    def kind(self) -> str:
        """The preset that the settings are those of, such as "kim23"; else the method.

        The memory that calibrated losses may take is no matter of kind.
        """
        same = (name for name, preset in PRESETS.items() if dict(self.settings) == asdict(preset))
        return next(same, self.method)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, all of it or nothing, and return the path.

        Raises:
            TableError: the path cannot be written, or holds something else.
        """
        choices = [
            {**asdict(choice), "loss": loss if math.isfinite(loss) else None} for choice, loss in self.losses.items()
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
        pruned = tuple(stored.pruned)
        choice = SpanChoice(stored.entry, stored.exit, stored.kind, stored.kernel, stored.end, pruned)
        Plan.from_json(Plan((choice,)).to_json())  # the checks of a plan's choices
        if choice in losses:
            raise PlanError(f"{choice} stands there twice; remove one")
        losses[choice] = math.nan if stored.loss is None else stored.loss
    return losses
