"""Search of the frontier for a network that meets the budget when measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress

from scipy.stats import spearmanr

from depthcomp.budget import Budget
from depthcomp.data.calibration import CalibrationSet
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.joint import JointLosses
from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.fitting.refit import Kept, Refitter, Unfitted
from depthcomp.latency.pricing import Candidate
from depthcomp.latency.timing import LatencyPredictor
from depthcomp.methods.baselines import BaselineFrontier
from depthcomp.progress import Progress, silent
from depthcomp.search.comparison import PlanComparer
from depthcomp.search.learned_losses import LearnedLosses
from depthcomp.search.plans import Found, Option
from dp_solver import Chain, Frontier, Solution, best_plans, frontier, solve
from fx_passes import CapturedNetwork, Plan, SpanChoice, linearize, merge

__all__ = ["Search"]

COMPARED_BATCHES = 20  # plans are compared on this many batches; the chosen one is refitted on all
ROUNDS = 4  # rounds of comparisons; each round uses the losses found before
LIKELY = 4  # plans of least expected loss to compare in a round
SAMPLED = 4  # plans for samples of the losses to compare in a round
FINALISTS = 2  # plans of least loss that are refitted to be compared
ATTEMPTS = 3
MARGINS = (0.995, 0.98, 0.98)  # for the plan after a miss, the next one, and so on, as shares of the sum allowed
LESS = 1 - 1e-9  # share of the original's latency; a plan at or above it is no faster than the original
UNUSED = 0.98  # share of the budget; a faster plan gives up accuracy that the budget would allow
CALIBRATION_SHARES = (0.5, 1.4)  # shares of the saving that the budget asks for: one plan on either side of it


class Search:
    """A search that chooses, refits, measures and corrects plans until one meets the budget.

    Args:
        network: the captured network, norms folded.
        problem: returns the solver's problem for losses of choices.
        losses: the loss of each choice alone.
        predictor: measures whole networks and predicts their latency.
        calibration: images to refit on, and to rank plans on by their true loss; the returned plan is refitted on all
            of them.
        candidates: the candidates that the problem chooses from.
        baseline: the plans to choose among; None for the frontier of the problem.
        fits: whether a plan's convolutions are solved for. The frontier's plans are then ranked by true loss; plans of
            a baseline are not.
        seed: seed of the sampled pixels.
        progress: called as (what, done, total).
        refit_kept: whether the kept layers behind a change are refitted, too, where that lowers the loss; False for
            synthetic images.
        memory_mib: memory that fits may use, in MiB; give the value that the choices were scored with.
        profiting: the choices whose loss falls with a refit of the first kept layers behind them; None where unknown.
        channels: decides which inner channels stay; None to look at the images for that.

    Attributes:
        predictor: measures whole networks and predicts their latency.
        frontier: the plans to choose among.
        comparer: compares plans by their true loss.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        problem: Callable[[Mapping[SpanChoice, float]], Chain],
        losses: Mapping[SpanChoice, float],
        predictor: LatencyPredictor,
        calibration: CalibrationSet,
        candidates: Sequence[Candidate],
        *,
        baseline: BaselineFrontier | None = None,
        fits: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
        refit_kept: bool = True,
        memory_mib: float = MEMORY_MIB,
        profiting: Set[SpanChoice] | None = None,
        channels: ChannelOrders | None = None,
    ) -> None:
        self.predictor = predictor
        self.frontier: Frontier | BaselineFrontier = frontier(problem(losses)) if baseline is None else baseline
        self._problem, self._losses = problem, losses
        self._learned = LearnedLosses(losses, seed)
        self._network = network
        self._ranks = fits and baseline is None
        self._refits_kept = refit_kept and fits
        self._profiting = profiting
        self._report = progress or silent
        refitter, compared = Refitter if fits else Unfitted, calibration.thinned(COMPARED_BATCHES)
        self._refitter, judge = (
            refitter(network, images, seed=seed, memory_mib=memory_mib, profiting=profiting, channels=channels)
            for images in (calibration, compared)
        )
        joint = JointLosses(
            network, candidates, compared,
            seed=seed, memory_mib=memory_mib, profiting=profiting, channels=channels, progress=self._report,
        )  # fmt: skip
        self.comparer = PlanComparer(joint, judge, _ways(profiting, refit_kept=self._refits_kept), self._report)
        self._compared: dict[Plan, Option] = {}
        self._found: dict[Plan, Found] = {}

    def option(self, index: int) -> Option:
        """Return plan number `index` of the frontier."""
        costs, losses = self.frontier.costs, self.frontier.losses
        return Option(_plan_of(self.frontier.plan(index)), float(costs[index]), float(losses[index]))

    def meet(self, budget: Budget) -> Found:
        """Return a plan whose merged network was measured within `budget`.

        Each measured network corrects the prediction. A plan that misses the budget also limits the sum of the next
        one, in proportion. A plan that is no faster than the original, timed beside it, misses every budget: the
        machine may have become faster since the original was timed alone, so that both meet a budget in ms.

        Raises:
            BudgetInfeasibleError: the fastest plan, measured, misses the budget or is not faster than the original.
        """
        self._calibrate(budget)
        limit_ms, margins, tried = LESS * self.predictor.original_sum_ms, iter(MARGINS), set[Plan]()
        best: Option | None = None
        for _ in range(ATTEMPTS):
            sum_ms = self.predictor.invert(budget.target_ms(self.predictor.original.median_ms))
            chosen = self._choose(min(sum_ms, limit_ms))
            if chosen.plan in tried:
                break
            tried.add(chosen.plan)
            found = self._try(chosen)
            used = _used(found, budget)
            if used > 1:
                limit_ms = min(limit_ms, chosen.sum_ms * next(margins) / used)
            elif best is None or found.loss < self._try(best).loss:
                best = chosen
            if UNUSED < used <= 1:
                break
        return self._refitted_farther(self._fastest(budget) if best is None else best, budget)

    def rank_correlation(self) -> float | None:
        """Return Spearman's correlation of importance and true loss over the compared plans.

        It is None for fewer than three plans, or where all importances or all losses are equal.
        """
        losses = self.comparer.glances or self.comparer.verified
        true, summed = [*losses.values()], [self._importance(plan) for plan in losses]
        if len(summed) < 3 or min(len(set(summed)), len(set(true))) == 1:
            return None
        return float(spearmanr(summed, true).statistic)

    def _fastest(self, budget: Budget) -> Option:
        """Return the fastest plan if it meets the budget, else raise with its latency."""
        option = self.option(0)
        fastest = self._try(option)
        original_ms, best_ms = fastest.original.median_ms, fastest.measured.median_ms
        if _used(fastest, budget) <= 1:
            return option
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

        Losses add up only approximately, so likely plans are compared by their true loss, all without a joint refit.
        What they lose corrects the losses of choices, and so tells which plans to compare next. The best few, and the
        compared plan of least importance, are refitted to decide. Plans of a baseline, and plans without fits, are
        taken as the method gave them.
        """
        if not self._ranks or sum_ms < self.frontier.costs[0]:
            return self.option(self._at(sum_ms))
        explored = len(self._within(sum_ms)) > LIKELY + SAMPLED
        if not explored:
            self._compare(self._of_fewer_kinds(sum_ms))
        for _ in range(1 if explored else ROUNDS):
            self._compare([*self._likely(sum_ms), *self._sampled(sum_ms)])
        within = self._within(sum_ms)
        best = sorted(within, key=lambda option: self.comparer.glances[option.plan])[:FINALISTS]
        finalists = [*best, min(within, key=lambda option: option.importance)]
        return min(finalists, key=lambda option: self.comparer.loss(option.plan))

    def _within(self, sum_ms: float) -> list[Option]:
        """Return the compared plans within a sum."""
        return [option for option in self._compared.values() if option.sum_ms <= sum_ms]

    def _compare(self, options: Iterable[Option]) -> None:
        """Find the true losses of plans without a joint refit."""
        found = {option.plan: option for option in options}
        self._compared |= found
        self.comparer.glance_at(found)

    def _likely(self, sum_ms: float) -> list[Option]:
        """Return new plans of least expected loss within a sum, without plans that only add choices to a better one."""
        problem = self._problem(self._learned.posterior_mean(self.comparer.glances))
        wanted, most = 2 * LIKELY, 2 * LIKELY + len(self._compared)
        while True:
            answers = best_plans(problem, sum_ms, wanted)
            new = [option for option in self._without_additions(answers) if option.plan not in self._compared]
            if len(new) >= LIKELY or len(answers) < wanted or wanted >= most:
                return new[:LIKELY]
            wanted = min(2 * wanted, most)

    def _without_additions(self, answers: Iterable[Solution]) -> list[Option]:
        """Return the plans of answers without those that only add choices to a better one."""
        found: list[Option] = []
        for answer in answers:
            option = self._option(answer.keys, answer.cost)
            if not any(set(other.plan) <= set(option.plan) for other in found):
                found.append(option)
        return found

    def _sampled(self, sum_ms: float) -> list[Option]:
        """Return new plans, each the best within a sum for a sample of the losses."""
        samples = (self._learned.sample(self.comparer.glances) for _ in range(SAMPLED))
        answers = (solve(self._problem(losses), sum_ms) for losses in samples)
        found = [self._option(answer.keys, answer.cost) for answer in answers]
        return [option for option in found if option.plan not in self._compared]

    def _of_fewer_kinds(self, sum_ms: float) -> list[Option]:
        """Return the plans of least importance within a sum of each kind alone, and of all kinds but one.

        Sums hide how kinds interact, so the comparison also sees the best sum of each.
        """
        by_kind: dict[str, dict[SpanChoice, float]] = {}
        for choice, loss in self._losses.items():
            by_kind.setdefault(choice.kind, {})[choice] = loss
        names, found = frozenset(by_kind), list[Option]()
        groups = dict.fromkeys(group for name in sorted(names) for group in (frozenset({name}), names - {name}))
        for group in filter(None, groups):
            losses = {choice: loss for name in sorted(group) for choice, loss in by_kind[name].items()}
            with suppress(BudgetInfeasibleError):
                answer = solve(self._problem(losses), sum_ms)
                found.append(self._option(answer.keys, answer.cost))
        return found

    def _option(self, keys: Sequence[object], sum_ms: float) -> Option:
        """Return the plan of the solver's keys with its importance."""
        plan = _plan_of(keys)
        return Option(plan, sum_ms, self._importance(plan))

    def _importance(self, plan: Plan) -> float:
        """Return the sum of the losses of a plan's choices; a choice without a loss counts as 0."""
        return sum(self._losses.get(choice, 0.0) for choice in plan)

    def _try(self, option: Option) -> Found:
        """Return a plan's refitted network with its measured latency, measured once."""
        if option.plan not in self._found:
            loss = self.comparer.loss(option.plan)
            self._found[option.plan] = self._measured(option, self.comparer.way(option.plan), loss)
        return self._found[option.plan]

    def _measured(self, option: Option, kept: Kept, loss: float) -> Found:
        plan = option.plan
        predicted_share = self.predictor.predict(option.sum_ms) / self.predictor.original.median_ms
        refit = self._refitter.carry_out(plan, kept=kept, progress=self._report)
        original, measured = self.predictor.learn(merge(refit.linearized, plan), option.sum_ms)
        predicted_ms = predicted_share * original.median_ms
        return Found(refit.plan, refit.linearized, loss, predicted_ms, original, measured, refit.solved)

    def _refitted_farther(self, option: Option, budget: Budget) -> Found:
        """Return a plan with all kept layers behind its changes refitted, where that lowers its loss.

        It is not tried for a plan of which no choice profits from a refit of the nearest ones.
        """
        found, profiting = self._try(option), self._profiting
        may_gain = self._refits_kept and (profiting is None or not profiting.isdisjoint(option.plan))
        gain = self.comparer.gain_of(option.plan, "all") if may_gain else 0.0
        if not gain:
            return found
        farther = self._measured(option, "all", found.loss - gain)
        return farther if _used(farther, budget) <= 1 else found


def _ways(profiting: Set[SpanChoice] | None, *, refit_kept: bool) -> tuple[Kept, ...]:
    """Return which kept layers may be refitted to compare plans: where it is known which choices profit, theirs."""
    if not refit_kept:
        return ("none",)
    return ("none", "nearest") if profiting is None else ("nearest",)


def _used(found: Found, budget: Budget) -> float:
    """Return a plan's latency as a share of its limit: the budget, or just below the original's latency."""
    original_ms = found.original.median_ms
    return found.measured.median_ms / min(budget.target_ms(original_ms), LESS * original_ms)


def _plan_of(keys: Sequence[object]) -> Plan:
    return Plan.of(key for key in keys if isinstance(key, SpanChoice))
