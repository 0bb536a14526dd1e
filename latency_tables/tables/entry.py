"""Entries of a latency table, and the method by which they were measured."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from depthcomp_errors import TableError

__all__ = ["Entry", "Method"]

_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A number of a file that is finite and not negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The latency of one operator.

    Attributes:
        ms: latency in ms, the backend's call overhead and changes of layout at the ends removed.
        spread: relative spread of the measurement, before the overhead was removed.
        n: samples behind it.
        unstable: whether the spread stayed too large however often it was measured, or the machine changed its speed
            in every round.
        drifted: rounds behind it in which the machine changed its speed and that could not be done again; 0 where
            that was not watched (see `Method.drift_limit`).
        layout_share: share of the latency that went into changes of layout at the operator's ends, which are removed;
            0 where there are none, or where the backend does not tell.

    Raises:
        TableError: a number is negative or not finite, or `n` is below 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    ms: _Number
    spread: _Number
    n: Annotated[int, Field(ge=1)]
    unstable: bool = False
    drifted: Annotated[int, Field(ge=0)] = 0
    layout_share: _Number = 0.0

    def __post_init__(self) -> None:
        for name in ("ms", "spread", "drifted", "layout_share"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TableError(f"{name} (={value}) of a table entry must be finite and not negative.")
        if self.n < 1:
            raise TableError(f"n (={self.n}) of a table entry must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How the entries of a table were measured last.

    Attributes:
        estimator: what became of the samples.
        rounds: interleaved rounds of each attempt.
        samples_per_round: samples that each round takes the median of.
        sample_ms: least duration in ms of one sample.
        warmup_ms: least duration in ms of the warm-up.
        seed: drew the order of the rounds.
        overhead_ms: what a call of the backend costs by itself, in ms; it is removed from the entries.
        drift_limit: how far a sentinel's turns in a round may lie apart, relative to the fastest, before the round is
            done again, or further where its samples scatter so much that noise explains it; None where no sentinel
            was timed.
        device_state: clocks, temperature, reasons to throttle and the like, right after the call overhead was
            measured; None where the backend does not tell.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    estimator: str
    rounds: int
    samples_per_round: int
    sample_ms: float
    warmup_ms: float
    seed: int
    overhead_ms: float
    drift_limit: float | None = None
    device_state: dict[str, str | int] | None = None
