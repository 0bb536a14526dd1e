"""Comparison of plans by their true loss, with refits."""

from __future__ import annotations

from collections.abc import Sequence

from depthcomp.fitting.refit import Kept, Refitter
from depthcomp.progress import Progress
from fx_passes import Plan

__all__ = ["PlanComparer"]


class PlanComparer:
    """Compares plans by the loss of their refits on images that these have not seen.

    Args:
        refitter: refits and judges plans.
        ways: which kept layers a refit may include; the way of least loss counts.
        report: called as (what, done, total).

    Attributes:
        glances: the loss of each plan so far on the first fold.
        verified: the loss of each plan that was judged on all folds, too.
    """

    def __init__(self, refitter: Refitter, ways: Sequence[Kept], report: Progress) -> None:
        self._refitter, self._ways, self._report = refitter, ways, report
        self.glances: dict[Plan, float] = {}
        self.verified: dict[Plan, float] = {}

    def glance(self, plan: Plan) -> float:
        """Return the loss of a plan on the first fold."""
        if plan not in self.glances:
            self._report("comparing plans", len(self.glances), len(self.glances) + 1)
            self.glances[plan] = min(self._refitter.loss(plan, kept=kept, folds=1) for kept in self._ways)
            self._report("comparing plans", len(self.glances), len(self.glances))
        return self.glances[plan]

    def loss(self, plan: Plan) -> float:
        """Return the loss of a plan on all folds."""
        if plan not in self.verified:
            self._report("verifying plans", len(self.verified), len(self.verified) + 1)
            self.verified[plan] = self._refitter.loss(plan, kept=self.way(plan))
            self._report("verifying plans", len(self.verified), len(self.verified))
        return self.verified[plan]

    def way(self, plan: Plan) -> Kept:
        """Return which kept layers a plan's refit includes: those of least loss on the first fold."""
        return min(self._ways, key=lambda kept: self._refitter.loss(plan, kept=kept, folds=1))

    def gain_of(self, plan: Plan, kept: Kept) -> float:
        """Return by how much a refit that includes other kept layers lowers the loss of a plan, 0 if it does not."""
        if self._refitter.loss(plan, kept=kept, folds=1) >= self.glance(plan):
            return 0.0
        return max(self.loss(plan) - self._refitter.loss(plan, kept=kept), 0.0)
