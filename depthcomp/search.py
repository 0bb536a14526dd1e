"""From the frontier to a network that meets the budget when measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from depthcomp.budget import Budget
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.importance import divergence, refit
from depthcomp.timing import NetworkTimer
from dp_solver import Frontier
from fx_passes import Plan, SpanChoice, linearize, merge
from latency_tables import Timing

__all__ = ["Found", "Search"]

Progress = Callable[[str, int, int], None]
FINALISTS = 5  # frontier neighbours that are compared by their true loss
NEIGHBOURHOOD = 0.06  # of the budget: neighbours that give away more speed are not worth a refit
ATTEMPTS = 6
UNUSED = 0.98  # of the budget: a plan that is faster than this leaves accuracy on the table
CALIBRATION_SHARES = (0.5, 1.4)  # of the saving that the budget asks for: one plan on either side of it


@dataclass(frozen=True, slots=True)
class Found:
    """A plan that was measured and meets the budget.

    Attributes:
        plan: the plan.
        linearized: its refitted graph.
        loss: true divergence on held-out images, of a refit that has not seen them.
        predicted_ms: what was predicted before this plan was measured, at the original's speed in this run.
        original: the original's timing in the same run.
        measured: the timing of the merged network.
    """

    plan: Plan
    linearized: fx.GraphModule
    loss: float
    predicted_ms: float
    original: Timing
    measured: Timing


class Search:
    """Chooses, refits, measures and corrects until the budget holds.

    Args:
        network: the captured graph, norms folded.
        plans: the frontier over sums of table latencies.
        timer: measures whole networks and predicts them.
        images: batches to refit on.
        held_out: batches that rank the finalists; the plan that is returned is refitted on them too.
    """

    def __init__(
        self, network: fx.GraphModule, plans: Frontier, timer: NetworkTimer, images: Sequence[Tensor],
        held_out: Sequence[Tensor], *, seed: int = 0, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.plans = plans
        self.timer = timer
        self._network = network
        self._images = images
        self._held_out = held_out
        self._seed = seed
        self._report = progress or (lambda what, done, total: None)
        self._true_losses: dict[int, float] = {}

    def plan(self, index: int) -> Plan:
        """Return the frontier's plan number `index`."""
        return Plan.of(key for key in self.plans.plan(index) if isinstance(key, SpanChoice))

    def meet(self, budget: Budget) -> Found:
        """Return a plan whose merged network was measured within `budget`.

        Each measured network corrects the prediction; a plan that misses the budget also lowers the sum that
        the next one may have.

        Raises:
            BudgetInfeasibleError: the fastest plan, measured, misses the budget.
        """
        self._calibrate(budget)
        slack, best, tried = 1.0, None, set[int]()
        for _ in range(ATTEMPTS):
            index = self._at(self.timer.invert(budget.target_ms(self.timer.original.ms)) * slack)
            chosen = self._best_near(index)
            if chosen in tried:
                break
            tried.add(chosen)
            found = self._try(chosen)
            overshoot = found.measured.ms / budget.target_ms(found.original.ms)
            if overshoot > 1:
                slack *= 0.995 / overshoot
            elif best is None or found.loss < best.loss:
                best = found
            if UNUSED < overshoot <= 1:
                break
        return best if best is not None else self._fastest(budget)

    def _fastest(self, budget: Budget) -> Found:
        """Return the fastest plan if it meets the budget, and say how far it gets where it does not."""
        fastest = self._try(0)
        if fastest.measured.ms <= budget.target_ms(fastest.original.ms):
            return fastest
        raise BudgetInfeasibleError(
            f"budget {budget} ({budget.target_ms(fastest.original.ms):.3f} ms) is below what any plan reaches: the "
            f"fastest was measured at {fastest.measured.ms:.3f} ms, the original at {fastest.original.ms:.3f} ms; "
            "ask for more time",
            best_ms=fastest.measured.ms,
        )

    def rank_correlation(self) -> float | None:
        """Return Spearman's correlation of importance and true loss over the plans that were compared."""
        if len(self._true_losses) < 3:
            return None
        summed = [self.plans.losses[index] for index in self._true_losses]
        ranks = [np.argsort(np.argsort(values)) for values in (summed, list(self._true_losses.values()))]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])

    def _calibrate(self, budget: Budget) -> None:
        """Measure a plan on either side of the budget, so that sums predict whole networks."""
        original_ms = self.timer.original.ms
        saving = 1 - budget.target_ms(original_ms) / original_ms
        for share in CALIBRATION_SHARES:
            index = self._at(self.timer.original_sum_ms * max(1 - share * saving, 0.0))
            self.timer.learn(merge(linearize(self._network, self.plan(index)), self.plan(index)), self._cost(index))

    def _at(self, sum_ms: float) -> int:
        """Return the plan of least loss within a sum, or the fastest where none is within it."""
        if sum_ms < self.plans.costs[0]:
            return 0
        return self.plans.at(sum_ms)

    def _best_near(self, index: int) -> int:
        """Return the plan of least true loss among a plan and its slightly faster neighbours."""
        nearest = [
            other
            for other in range(max(0, index - FINALISTS + 1), index + 1)
            if self._cost(other) >= (1 - NEIGHBOURHOOD) * self._cost(index)
        ]
        for done, other in enumerate(nearest):
            self._report("comparing finalists", done, len(nearest))
            self._loss(other)
        return min(nearest, key=self._loss)

    def _loss(self, index: int) -> float:
        """Return the true loss of a plan on the held-out images, computed once."""
        if index not in self._true_losses:
            self._true_losses[index] = self._true_loss(self.plan(index))
        return self._true_losses[index]

    def _true_loss(self, plan: Plan) -> float:
        network = merge(refit(self._network, plan, self._images, seed=self._seed), plan)
        total = 0.0
        with torch.no_grad():
            for batch in self._held_out:
                total += divergence(self._network(batch), network(batch)) * len(batch)
        return total / sum(len(batch) for batch in self._held_out)

    def _try(self, index: int) -> Found:
        plan, loss = self.plan(index), self._loss(index)
        predicted_share = self.timer.predict(self._cost(index)) / self.timer.original.ms
        everything = [*self._images, *self._held_out]
        linearized = refit(self._network, plan, everything, seed=self._seed, progress=self._report)
        original, measured = self.timer.learn(merge(linearized, plan), self._cost(index))
        return Found(plan, linearized, loss, predicted_share * original.ms, original, measured)

    def _cost(self, index: int) -> float:
        return float(self.plans.costs[index])
