"""What the search returns where every plan's measured latency and true loss are known in advance."""

import pytest
import torch

from depthcomp import Budget
from depthcomp.data.calibration import cross_validated
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.fitting.refit import Refit
from depthcomp.search import search
from depthcomp.search.search import Search
from dp_solver import Chain, Choice
from fx_passes import Fit, Plan
from latency_tables import Timing, fit_affine

ORIGINAL_MS = 10.0


def plan_of(size):
    return Plan((Fit("a", "b", (size, size)),))


class KnownPredictor:
    """Measures what a dictionary says of a plan's sum; predicts like the real one."""

    def __init__(self, measured):
        self.original = Timing((ORIGINAL_MS,) * 3, 9)
        self.original_sum_ms = ORIGINAL_MS
        self._measured = measured
        self._points = [(ORIGINAL_MS, ORIGINAL_MS)]
        self.tried = []

    def learn(self, network, sum_ms):
        found = self._measured.get(sum_ms, sum_ms)
        self._points.append((sum_ms, found))
        self.tried.append(sum_ms)
        return self.original, Timing((found,) * 3, 9)

    def predict(self, sum_ms):
        return fit_affine(*zip(*self._points, strict=True)).predict(sum_ms)

    def invert(self, target_ms):
        return fit_affine(*zip(*self._points, strict=True)).invert(target_ms)


@pytest.fixture
def known_search(monkeypatch):
    """Return a maker of searches over plans of one choice each: (sum in ms, importance, true loss)."""

    def make(plans, measured, rises=()):
        """`rises` says by how much refits of kept convolutions change each true loss."""
        sizes = {2 * place + 1: plan for place, plan in enumerate(plans)}
        choices = {size: next(iter(plan_of(size))) for size in sizes}
        true_losses = {plan_of(size): loss for size, (_, _, loss) in sizes.items()} | {Plan(): 0.0}

        losses = {choices[size]: importance for size, (_, importance, _) in sizes.items()}

        def problem(some):
            offered = [Choice(choices[size], sum_ms, some[choices[size]]) for size, (sum_ms, _, _) in sizes.items()]
            return Chain(1, {(0, 1): [Choice("keep", ORIGINAL_MS, 0.0), *offered]})

        class KnownRefitter:
            def __init__(self, network, calibration, **settings):
                pass

            def carry_out(self, plan, *, kept, progress):
                return Refit(plan, plan, {kept: None})

            def loss(self, plan, *, kept, folds=None):
                return true_losses[plan] + dict(rises).get(kept, 0.0)

        class KnownJoint:
            def __init__(self, network, candidates, calibration, **settings):
                pass

            def fit(self, plans):
                pass

            def loss(self, plan, *, refitted):
                return true_losses[plan]

        monkeypatch.setattr(search, "Refitter", KnownRefitter)
        monkeypatch.setattr(search, "JointLosses", KnownJoint)
        monkeypatch.setattr(search, "linearize", lambda network, plan: plan)
        monkeypatch.setattr(search, "merge", lambda linearized, plan: linearized)
        predictor = KnownPredictor(measured)
        images = cross_validated(torch.zeros(3, 1, 2, 2), 0)
        return Search(None, problem, losses, predictor, images, []), predictor

    return make


def test_a_missed_plan_gives_way_to_the_next_best_not_to_the_fastest(known_search):
    plans = [(7.4, 0.1, 0.1), (6.5, 0.2, 0.2), (2.0, 9.0, 9.0)]
    searching, predictor = known_search(plans, {7.4: 8.05})
    found = searching.meet(Budget(8, "ms"))
    assert 7.4 in predictor.tried
    assert (found.plan, found.loss, found.measured.ms) == (plan_of(3), 0.2, 6.5)


def test_of_plans_that_fit_the_one_of_least_true_loss_is_returned(known_search):
    plans = [(7.9, 0.1, 0.9), (7.8, 0.2, 0.3), (7.7, 0.4, 0.5), (3.0, 5.0, 5.0)]
    found = known_search(plans, {})[0].meet(Budget(8, "ms"))
    assert (found.plan, found.loss) == (plan_of(3), 0.3)


@pytest.mark.parametrize("best", ["none", "nearest", "all"])
def test_kept_convolutions_are_refitted_as_far_as_that_lowers_the_loss(known_search, best):
    rises = [(kept, 0.0 if kept == best else 0.1) for kept in ("none", "nearest", "all")]
    found = known_search([(7.9, 0.1, 0.9), (3.0, 5.0, 5.0)], {}, rises)[0].meet(Budget(8, "ms"))
    assert (found.loss, list(found.solved)) == (0.9, [best])


def test_sums_that_overstate_savings_are_corrected(known_search):
    """Whole networks take 1.25 of the sum, less 2.5 ms: a sum of 8.3 ms is within 8 ms, one of 8.6 ms is not."""
    plans = [(8.6, 0.1, 0.1), (8.3, 0.2, 0.2), (7.5, 0.3, 0.3), (3.0, 9.0, 9.0)]
    measured = {sum_ms: 1.25 * sum_ms - 2.5 for sum_ms, _, _ in plans}
    found = known_search(plans, measured)[0].meet(Budget(8, "ms"))
    assert (found.plan, found.measured.ms) == (plan_of(3), pytest.approx(7.875))
    assert found.predicted_ms == pytest.approx(7.875, rel=0.02)


def test_where_every_plan_misses_the_fastest_is_named(known_search):
    plans = [(7.5, 0.3, 0.3), (6.0, 1.0, 1.0)]
    searching, _ = known_search(plans, {7.5: 9.0, 6.0: 8.5})
    with pytest.raises(BudgetInfeasibleError, match=r"the fastest was measured at 8\.500 ms") as caught:
        searching.meet(Budget(8, "ms"))
    assert caught.value.best_ms == pytest.approx(8.5)


def test_the_original_itself_is_no_compressed_network(known_search):
    """Noise may measure its twin within a budget near the whole; a plan that rewrites something is returned."""
    plans = [(9.7, 0.1, 0.1), (5.0, 1.0, 1.0)]
    found = known_search(plans, {10.0: 9.88, 9.7: 9.6})[0].meet(Budget(99, "%"))
    assert found.plan == plan_of(1)


def made_faster(predictor, original_ms):
    """The machine has become faster since the original was measured alone."""
    learn = predictor.learn
    predictor.learn = lambda network, sum_ms: (Timing((original_ms,) * 3, 9), learn(network, sum_ms)[1])


@pytest.mark.parametrize("slowness", [1.0, 1.05], ids=["as slow", "slower"])
def test_a_network_that_is_not_faster_than_the_original_is_refused_though_it_meets_the_budget(known_search, slowness):
    plans = [(7.4, 0.1, 0.1), (6.5, 0.2, 0.2)]
    searching, predictor = known_search(plans, dict.fromkeys((7.4, 6.5), 7.0 * slowness))
    made_faster(predictor, 7.0)
    sentence = (
        r"no plan is faster than the original, measured side by side: the fastest took 7\.\d+ ms, the original "
        r"7\.000 ms; the original meets budget 8ms, so keep it or ask for less$"
    )
    with pytest.raises(BudgetInfeasibleError, match=sentence) as caught:
        searching.meet(Budget(8, "ms"))
    assert caught.value.best_ms == 7.0 * slowness


def test_of_plans_that_meet_the_budget_one_that_is_faster_than_the_original_is_returned(known_search):
    plans = [(7.9, 0.1, 0.1), (6.5, 0.2, 0.2)]
    searching, predictor = known_search(plans, {7.9: 7.5, 6.5: 6.0})
    made_faster(predictor, 7.2)
    found = searching.meet(Budget(8, "ms"))
    assert 7.9 in predictor.tried
    assert (found.plan, found.measured.ms) == (plan_of(3), 6.0)


def test_no_plan_is_measured_until_it_fits(known_search):
    """A budget is not met by luck: the fastest plan, refitted, is measured once."""
    searching, predictor = known_search([(6.0, 1.0, 1.0)], {6.0: 8.5})
    with pytest.raises(BudgetInfeasibleError, match="the fastest was measured"):
        searching.meet(Budget(8, "ms"))
    assert predictor.tried == [6.0, 6.0, 6.0]  # twice before its weights are refitted, once with them
