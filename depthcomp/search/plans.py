"""Plans that the search weighs: as the solver knows them, and as they were found when measured."""

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
    """A plan with what the solver knows of it.

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
    """A plan that was measured and meets the budget.

    Attributes:
        plan: the plan.
        linearized: its refitted graph.
        solved: the operators of its slots, by node.
        loss: true divergence on judging images, of refits whose weights have not seen them.
        predicted_ms: what was predicted before its refitted network was measured, at the original's speed in this run.
        original: the original's timing in the same run.
        measured: the timing of the merged network.
    """

    plan: Plan
    linearized: fx.GraphModule
    loss: float
    predicted_ms: float
    original: Timing
    measured: Timing
    solved: Mapping[str, AffineConv] = field(default_factory=dict)
