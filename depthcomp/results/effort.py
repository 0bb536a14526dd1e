"""Effort of a compression, in counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Effort"]


@dataclass(frozen=True, slots=True)
class Effort:
    """What a compression took to find its plan.

    Attributes:
        choices: number of choices that save time.
        scored: number of choices with a loss; the others were left out.
        fits: number of convolutions that were solved for these losses.
        true_losses: number of choices whose loss is a true one, not an estimate.
        plans_compared: number of plans judged without a joint refit of their choices.
        plans_verified: number of plans judged with one.
        networks_measured: number of compressed networks whose latency was measured.
        foretold_seconds: how long the run would take, as foretold before the choices were scored; None where unknown.
    """

    choices: int
    scored: int
    fits: int
    true_losses: int
    plans_compared: int
    plans_verified: int
    networks_measured: int
    foretold_seconds: float | None = None
