"""Comparison of plans by their true loss, first without a joint refit, then with one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from depthcomp.fitting.joint import JointLosses
from depthcomp.fitting.refit import Kept, Refitter
from depthcomp.progress import Progress
from fx_passes import Plan

__all__ = ["PlanComparer"]


class PlanComparer:
    """Compares plans by the loss on images that their fits have not seen.

    Args:
        joint: judges plans whose choices are fitted alone.
        refitter: refits whole plans and judges them.
        ways: which kept layers a refit may include; the way of least loss counts.
        report: called as (what, done, total).

    Attributes:
        glances: the loss of each plan so far without a joint refit.
        verified: the loss of each plan that was refitted, too.
    """

    def __init__(self, joint: JointLosses, refitter: Refitter, ways: Sequence[Kept], report: Progress) -> None:
        self._joint, self._refitter, self._ways, self._report = joint, refitter, ways, report
        self.glances: dict[Plan, float] = {}
        self.verified: dict[Plan, float] = {}

    def glance_at(self, plans: Iterable[Plan]) -> None:
        """Find the losses of plans without a joint refit."""
        missing = [plan for plan in dict.fromkeys(plans) if plan not in self.glances]
        self._joint.fit(missing)
        for done, plan in enumerate(missing):
            self.glances[plan] = min(self._joint.loss(plan, refitted=kept != "none") for kept in self._ways)
            self._report("comparing plans", done + 1, len(missing))

    def loss(self, plan: Plan) -> float:
        """Return the loss of a plan, refitted."""
        if plan not in self.verified:
            self._report("verifying plans", len(self.verified), len(self.verified) + 1)
            self.verified[plan] = self._refitter.loss(plan, kept=self.way(plan))
            self._report("verifying plans", len(self.verified), len(self.verified))
        return self.verified[plan]

    def way(self, plan: Plan) -> Kept:
        """Return which kept layers a plan's refit includes: those of least loss on the first fold."""
        if len(self._ways) == 1:
            return self._ways[0]
        return min(self._ways, key=lambda kept: self._refitter.loss(plan, kept=kept, folds=1))

    def gain_of(self, plan: Plan, kept: Kept) -> float:
        """Return by how much a refit that includes other kept layers lowers the loss of a plan, 0 if it does not."""
        now = self._refitter.loss(plan, kept=self.way(plan), folds=1)
        if self._refitter.loss(plan, kept=kept, folds=1) >= now:
            return 0.0
        return max(self.loss(plan) - self._refitter.loss(plan, kept=kept), 0.0)
