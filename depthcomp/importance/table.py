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
from fx_passes import SpanChoice
from fx_passes.kinds import decode_choice, encode_choice
from fx_passes.kinds.codec import from_version_1
from latency_tables.json_file import JsonFormat

__all__ = ["ImportanceTable"]


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
