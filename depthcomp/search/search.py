"""Search of the frontier for a network that meets the budget when measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np
from scipy.stats import spearmanr

from depthcomp.budget import Budget
from depthcomp.data.calibration import CalibrationSet
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.fitting.refit import Kept, Refitter, Unfitted
from depthcomp.latency.timing import LatencyPredictor
from depthcomp.methods.baselines import BaselineFrontier
from depthcomp.progress import Progress, silent
from depthcomp.search.plans import Found, Option
from dp_solver import Chain, Frontier, frontier, solve
from fx_passes import CapturedNetwork, Plan, SpanChoice, linearize, merge

__all__ = ["Search"]

COMPARED_BATCHES = 20  # plans are compared on this many batches; the chosen one is refitted on all
FINALISTS = 4  # this many frontier neighbours are compared by their true loss
NEIGHBOURHOOD = 0.05  # share of a plan's sum; neighbours that are faster by more are not worth a refit
CLIMBS = 2  # rounds in which the best plan tries to do without each of its choices
ATTEMPTS = 6
LESS = 1 - 1e-9  # share of the original's latency; a plan at or above it is no faster than the original
UNUSED = 0.98  # share of the budget; a faster plan gives up accuracy that the budget would allow
CALIBRATION_SHARES = (0.5, 1.4)  # shares of the saving that the budget asks for: one plan on either side of it


class Search:
    """A search that chooses, refits, measures and corrects plans until one meets the budget.

    Args:
        network: the captured network, norms folded.
        problem: returns the solver's problem without the given choices.
        predictor: measures whole networks and predicts their latency.
        calibration: images to refit on, and to rank plans on by their true loss; the returned plan is refitted on all
            of them.
        baseline: the plans to choose among; None for the frontier of the problem.
        fits: whether a plan's convolutions are solved for. The frontier's plans are then ranked by true loss; plans of
            a baseline are not.
        seed: seed of the sampled pixels.
        progress: called as (what, done, total).
        refit_kept: whether the kept layers behind a change are refitted, too, where that lowers the loss; False for
            synthetic images.
        memory_mib: memory that fits may use, in MiB; give the value that the choices were scored with.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        problem: Callable[[Set[SpanChoice]], Chain],
        predictor: LatencyPredictor,
        calibration: CalibrationSet,
        *,
        baseline: BaselineFrontier | None = None,
        fits: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
        refit_kept: bool = True,
        memory_mib: float = MEMORY_MIB,
    ) -> None:
        self._refits_kept = refit_kept and fits
        self.predictor = predictor
        self.frontier: Frontier | BaselineFrontier = frontier(problem(frozenset())) if baseline is None else baseline
        self._problem = problem
        self._network = network
        self._ranks = fits and baseline is None
        refitter = Refitter if fits else Unfitted
        self._refitter = refitter(network, calibration, seed=seed, memory_mib=memory_mib)
        compared = calibration.thinned(COMPARED_BATCHES)
        self._comparer = refitter(network, compared, seed=seed, memory_mib=memory_mib)
        self._report = progress or silent
        self._true_losses: dict[Option, dict[Kept, float]] = {}
        self._found: dict[Option, Found] = {}

    def option(self, index: int) -> Option:
        """Return plan number `index` of the frontier."""
        costs, losses = self.frontier.costs, self.frontier.losses
        return Option(_plan_of(self.frontier.plan(index)), float(costs[index]), float(losses[index]))

    def meet(self, budget: Budget) -> Found:
        """Return a plan whose merged network was measured within `budget`.

        Each measured network corrects the prediction. A plan that misses the budget also lowers the sum allowed for the
        next one. A plan that is no faster than the original, timed beside it, misses every budget: the machine may have
        become faster since the original was timed alone, so that both meet a budget in ms.

        Raises:
            BudgetInfeasibleError: the fastest plan, measured, misses the budget or is not faster than the original.
        """
        self._calibrate(budget)
        slack, limit_ms, best, tried = 1.0, LESS * self.predictor.original_sum_ms, None, set[Option]()
        for _ in range(ATTEMPTS):
            sum_ms = self.predictor.invert(budget.target_ms(self.predictor.original.median_ms)) * slack
            chosen = self._choose(min(sum_ms, limit_ms))
            if chosen in tried:
                break
            tried.add(chosen)
            found = self._try(chosen)
            used = _used(found, budget)
            if used > 1:
                slack *= 0.995 / used
                limit_ms = min(limit_ms, np.nextafter(chosen.sum_ms, 0.0))
            elif best is None or found.loss < best.loss:
                best = found
            if UNUSED < used <= 1:
                break
        return best if best is not None else self._fastest(budget)

    def rank_correlation(self) -> float | None:
        """Return Spearman's correlation of importance and true loss over the compared plans.

        It is None for fewer than three plans, or where all importances or all losses are equal.
        """
        summed = [option.importance for option in self._true_losses]
        true = [min(losses.values()) for losses in self._true_losses.values()]
        if len(summed) < 3 or min(len(set(summed)), len(set(true))) == 1:
            return None
        return float(spearmanr(summed, true).statistic)

    def _fastest(self, budget: Budget) -> Found:
        """Return the fastest plan if it meets the budget, else raise with its latency."""
        fastest = self._try(self.option(0))
        original_ms, best_ms = fastest.original.median_ms, fastest.measured.median_ms
        if _used(fastest, budget) <= 1:
            return fastest
        if best_ms <= budget.target_ms(original_ms):
            raise BudgetInfeasibleError(
                f"no plan is faster than the original, measured side by side: the fastest took {best_ms:.3f} ms, the "
                f"original {original_ms:.3f} ms; the original meets budget {budget}, so keep it or ask for less",
                best_ms=best_ms,
            )
        raise BudgetInfeasibleError(
            f"no plan meets budget {budget} ({budget.target_ms(original_ms):.3f} ms): the fastest was measured at "
            f"{best_ms:.3f} ms, the original at {original_ms:.3f} ms; give a larger budget",
            best_ms=best_ms,
        )

    def _calibrate(self, budget: Budget) -> None:
        """Measure a plan on either side of the budget, so that sums predict whole networks."""
        original_ms = self.predictor.original.median_ms
        saving = 1 - budget.target_ms(original_ms) / original_ms
        for share in CALIBRATION_SHARES:
            option = self.option(self._at(self.predictor.original_sum_ms * max(1 - share * saving, 0.0)))
            self.predictor.learn(merge(linearize(self._network, option.plan), option.plan), option.sum_ms)

    def _at(self, sum_ms: float) -> int:
        """Return the index of the plan of least importance within a sum, or of the fastest where none is."""
        return 0 if sum_ms < self.frontier.costs[0] else self.frontier.at(sum_ms)

    def _choose(self, sum_ms: float) -> Option:
        """Return the plan of least true loss within a sum.

        Importances add up only approximately, so frontier neighbours are compared by their true loss. Then the solver
        plans without each choice of the best plan in turn, and a plan of lower true loss replaces the best. Plans of a
        baseline, and plans without fits, are taken as the method gave them.
        """
        if not self._ranks or sum_ms < self.frontier.costs[0]:
            return self.option(self._at(sum_ms))
        best = min(self._neighbours(self._at(sum_ms)), key=self._loss)
        for _ in range(CLIMBS):
            better = min([best, *self._without_one(best, sum_ms)], key=self._loss)
            if better == best:
                break
            best = better
        return best

    def _neighbours(self, index: int) -> list[Option]:
        """Return a frontier plan and some slightly faster ones."""
        fastest = (1 - NEIGHBOURHOOD) * self.frontier.costs[index]
        first = int(np.searchsorted(self.frontier.costs[:index], fastest))
        return [self.option(place) for place in sorted({round(p) for p in np.linspace(first, index, FINALISTS)})]

    def _without_one(self, option: Option, sum_ms: float) -> Iterator[Option]:
        """Yield the solver's best plan within a sum, for each choice of `option` without that choice."""
        for choice in option.plan:
            try:
                answer = solve(self._problem({choice}), sum_ms)
            except BudgetInfeasibleError:
                continue
            yield Option(_plan_of(answer.keys), answer.cost, answer.loss)

    def _loss(self, option: Option) -> float:
        """Return the true loss of a plan on the judging images, with refits where they lower it."""
        return min(self._losses(option).values())

    def _losses(self, option: Option) -> dict[Kept, float]:
        """Return the true loss of a plan without and with refits of the nearest kept layers, computed once."""
        if option not in self._true_losses:
            ways: tuple[Kept, ...] = ("none", "nearest") if self._refits_kept else ("none",)
            self._report("comparing plans", 0, 1)
            self._true_losses[option] = {kept: self._comparer.loss(option.plan, kept=kept) for kept in ways}
            self._report("comparing plans", 1, 1)
        return self._true_losses[option]

    def _try(self, option: Option) -> Found:
        """Return a plan's refitted network with its measured latency, measured once."""
        if option not in self._found:
            self._found[option] = self._measured(option)
        return self._found[option]

    def _measured(self, option: Option) -> Found:
        plan, losses = option.plan, dict(self._losses(option))
        if self._refits_kept:
            losses["all"] = self._comparer.loss(plan, kept="all")
        kept = min(losses, key=losses.__getitem__)
        predicted_share = self.predictor.predict(option.sum_ms) / self.predictor.original.median_ms
        refit = self._refitter.carry_out(plan, kept=kept, progress=self._report)
        original, measured = self.predictor.learn(merge(refit.linearized, plan), option.sum_ms)
        predicted_ms = predicted_share * original.median_ms
        return Found(plan, refit.linearized, losses[kept], predicted_ms, original, measured, refit.solved)


def _used(found: Found, budget: Budget) -> float:
    """Return a plan's latency as a share of its limit: the budget, or just below the original's latency."""
    original_ms = found.original.median_ms
    return found.measured.median_ms / min(budget.target_ms(original_ms), LESS * original_ms)


def _plan_of(keys: Sequence[object]) -> Plan:
    return Plan.of(key for key in keys if isinstance(key, SpanChoice))
