"""Plans in the search: with the solver's numbers, and with measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fx_passes import Plan
from fx_passes.affine import AffineConv
from latency_tables import Timing

__all__ = ["Found", "Option"]


@dataclass(frozen=True, slots=True)
class Option:
    """A plan with the solver's numbers.

    Attributes:
        plan: the plan.
        sum_ms: sum of the table's latencies under the plan.
        importance: sum of its choices' losses.
    """

    plan: Plan
    sum_ms: float
    importance: float


@dataclass(frozen=True, slots=True)
class Found:
    """A measured plan.

    Attributes:
        plan: the plan.
        linearized: its refitted graph.
        solved: the operators of its slots, by node.
        loss: true divergence on judging images, of refits whose weights have not seen them.
        predicted_ms: prediction before the measurement, scaled to the original's latency in that measurement.
        original: timing of the original in that measurement.
        measured: timing of the merged network.
    """

    plan: Plan
    linearized: fx.GraphModule
    loss: float
    predicted_ms: float
    original: Timing
    measured: Timing
    solved: Mapping[str, AffineConv] = field(default_factory=dict)
