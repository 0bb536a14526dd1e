"""The search for a plan that meets its budget when measured, and the predictor that it asks."""

import math

import pytest
import scipy.stats
import torch
from torch import nn

from depthcomp import Budget
from depthcomp.data.calibration import cross_validated
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.calibrated import calibrated
from depthcomp.latency.pricing import Pricing
from depthcomp.latency.timing import LatencyPredictor, NetworkTimer
from depthcomp.preparation import DEFAULT_LIMITS
from depthcomp.search.search import Search
from fx_passes import CapturedNetwork, Drop, Plan, capture, enumerate_spans
from fx_passes.merge import fold_batch_norms
from latency_tables import Timing, fit_affine

pytestmark = pytest.mark.whole

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def calibration():
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return cross_validated(images, seed=0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    body = [module for _ in range(4) for module in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *body, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(96, 5)
    )
    gm = capture(model.eval(), EXAMPLE)
    fold_batch_norms(gm)
    gm.recompile()
    return CapturedNetwork(gm)


def price(signature):
    """Multiply-adds in units that make a 3x3 convolution of six channels cost 1 ms."""
    taps = signature.kernel[0] * signature.kernel[1] * signature.in_channels
    return 0.1 + 0.9 * taps / 54


@pytest.fixture(scope="module")
def choosable(network, calibration):
    """What the search chooses from: the pricing, the candidates that save time, and their losses; and the images."""
    pricing = Pricing(network)
    candidates = [
        c for c in pricing.candidates(enumerate_spans(network, DEFAULT_LIMITS)) if pricing.saving_ms(c, price) > 0
    ]
    losses = calibrated(network, candidates, calibration, {candidate.choice: 1.0 for candidate in candidates}).losses
    return pricing, candidates, losses, calibration


def total_ms(pricing):
    return pricing.kept_ms(pricing.kept, price)


class ScriptedPredictor:
    """Measures what a function of the sum says; predicts like the real one."""

    def __init__(self, original_sum_ms, measured):
        self.original_sum_ms = original_sum_ms
        self._measured = measured
        self.original = self._timing(original_sum_ms)
        self._points = [(original_sum_ms, self.original.ms)]
        self.measured = []

    def _timing(self, sum_ms):
        return Timing((self._measured(sum_ms),) * 3, 9)

    def learn(self, network, sum_ms):
        found = self._timing(sum_ms)
        self._points.append((sum_ms, found.ms))
        self.measured.append(found.ms)
        return self.original, found

    def predict(self, sum_ms):
        return fit_affine(*zip(*self._points, strict=True)).predict(sum_ms)

    def invert(self, target_ms):
        return fit_affine(*zip(*self._points, strict=True)).invert(target_ms)


def search_for(network, choosable, measured=lambda sum_ms: sum_ms + 0.3):
    pricing, candidates, losses, calibration = choosable

    def problem(some):
        return pricing.problem(network.tree, candidates, some, price)

    predictor = ScriptedPredictor(total_ms(pricing), measured)
    return Search(network, problem, losses, predictor, calibration, candidates), predictor


@pytest.mark.parametrize("budget", ["90%", "70%", "1.8x", "3ms"])
def test_an_honest_machine(network, choosable, budget):
    search, predictor = search_for(network, choosable)
    found = search.meet(Budget.parse(budget))
    assert found.measured.ms <= Budget.parse(budget).target_ms(predictor.original.ms)
    assert found.predicted_ms == pytest.approx(found.measured.ms, rel=0.02)
    assert found.original == predictor.original
    assert isinstance(found.plan, Plan)
    assert len(found.plan) > 0
    assert found.loss >= 0


@pytest.mark.parametrize(
    "measured",
    [
        lambda s: s if s > 4.9 else 1.2 * s,
        lambda s: s + (0.5 if s < 3.6 else 0.0),
        lambda s: s * (1.1 if round(100 * s) % 2 else 1.0),
        lambda s: 3 + 0.4 * s,
    ],
)
def test_a_machine_that_breaks_its_promises(network, choosable, measured):
    search, predictor = search_for(network, choosable, measured)
    found = search.meet(Budget(80, "%"))
    assert found.measured.ms <= 0.8 * predictor.original.ms


def test_a_budget_out_of_reach_names_the_fastest(network, choosable):
    search, predictor = search_for(network, choosable, lambda sum_ms: 2.5 + sum_ms)
    with pytest.raises(BudgetInfeasibleError, match=r"no plan meets budget 3x.*: the fastest was") as caught:
        search.meet(Budget(3, "x"))
    assert caught.value.best_ms == pytest.approx(min(predictor.measured))


@pytest.mark.parametrize("budget", [Budget(50, "x"), Budget(0.001, "ms")])
def test_a_budget_below_what_a_call_costs(network, choosable, budget):
    """The sum that it leaves for the operators is negative."""
    search, _ = search_for(network, choosable)
    with pytest.raises(BudgetInfeasibleError, match="no plan meets budget") as caught:
        search.meet(budget)
    assert caught.value.best_ms > 0.3


def test_a_larger_budget_loses_no_more(network, choosable):
    losses = [search_for(network, choosable)[0].meet(Budget(share, "%")).loss for share in (50, 70, 90)]
    assert losses[0] >= losses[2]
    assert all(loss >= 0 for loss in losses)


def test_the_search_repeats(network, choosable):
    one, two = (search_for(network, choosable)[0].meet(Budget(70, "%")) for _ in range(2))
    assert one.plan == two.plan
    assert one.loss == two.loss
    states = one.linearized.state_dict(), two.linearized.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_likely_plans_add_nothing_to_better_ones(network, choosable):
    search, predictor = search_for(network, choosable)
    sum_ms = 0.7 * predictor.original_sum_ms
    options = search._likely(sum_ms)
    plans = [set(option.plan) for option in options]
    assert len(plans) == 4
    assert not any(one <= other for number, one in enumerate(plans) for other in plans[number + 1 :])
    assert [option.importance for option in options] == sorted(option.importance for option in options)
    assert all(option.sum_ms <= sum_ms for option in options)
    best = search.option(search._at(sum_ms))
    assert (options[0].plan, options[0].importance) == (best.plan, pytest.approx(best.importance))


def test_no_plan_is_compared_twice(network, choosable):
    search, predictor = search_for(network, choosable)
    sum_ms = 0.7 * predictor.original_sum_ms
    for _ in range(3):
        before = set(search._compared)
        new = [*search._likely(sum_ms), *search._sampled(sum_ms)]
        assert before.isdisjoint(option.plan for option in new)
        assert all(option.sum_ms <= sum_ms for option in new)
        search._compare(new)
    assert len(search._compared) > 12


def test_what_plans_lose_decides_which_are_compared_next(network, choosable):
    search, predictor = search_for(network, choosable)
    sum_ms = 0.7 * predictor.original_sum_ms
    best = search._likely(sum_ms)
    search._compared |= {option.plan: option for option in best}
    search.comparer.glances |= {option.plan: option.importance for option in best}
    as_expected = search._likely(sum_ms)
    blamed = as_expected[0].plan
    search.comparer.glances[blamed] = 4 * as_expected[0].importance
    assert blamed not in {option.plan for option in search._likely(sum_ms)}


def test_the_rank_correlation_needs_three_plans(network, choosable):
    search, _ = search_for(network, choosable)
    assert search.rank_correlation() is None
    for share in (85, 75, 65, 55):
        search.meet(Budget(share, "%"))
    glances = search.comparer.glances
    assert len(glances) >= 3
    losses = choosable[2]
    summed = [sum(losses[choice] for choice in plan) for plan in glances]
    wanted = scipy.stats.spearmanr(summed, list(glances.values())).statistic
    assert search.rank_correlation() == pytest.approx(wanted)


def some_plans():
    return [Plan((Drop("a", f"b{number}"),)) for number in range(4)]


@pytest.mark.parametrize("importances", [(0.5, 0.5, 0.5, 1.0), (0.0, 0.0, 0.2, 0.2), (0.3, 0.1, 0.2, 0.3)])
def test_the_rank_correlation_where_importances_are_equal(network, choosable, importances):
    search, _ = search_for(network, choosable)
    true = (0.3, 0.2, 0.1, 0.4)
    for plan, importance, loss in zip(some_plans(), importances, true, strict=True):
        search._losses = {**search._losses, next(iter(plan)): importance}
        search.comparer.glances[plan] = loss
    assert search.rank_correlation() == pytest.approx(scipy.stats.spearmanr(importances, true).statistic)


def test_scores_that_are_all_equal_rank_nothing(network, choosable):
    search, _ = search_for(network, choosable)
    for number, plan in enumerate(some_plans()):
        search._losses = {**search._losses, next(iter(plan)): 0.0}
        search.comparer.glances[plan] = 0.1 * number
    assert search.rank_correlation() is None


def test_a_plan_whose_outputs_are_nan_is_not_chosen(network, choosable, monkeypatch):
    """Where a plan overflows unless its kept convolutions are refitted, only these refits count."""
    search, _ = search_for(network, choosable)
    honest = Refitter.carry_out

    def overflowing(self, plan, *, kept="none", **options):
        refit = honest(self, plan, kept=kept, **options)
        if kept == "none":
            layers = refit.linearized.modules()
            next(layer for layer in layers if isinstance(layer, nn.Linear)).weight.data.fill_(math.nan)
        return refit

    monkeypatch.setattr(Refitter, "carry_out", overflowing)
    found = search.meet(Budget(70, "%"))
    assert math.isfinite(found.loss)
    assert search.comparer.verified
    assert all(map(math.isfinite, search.comparer.verified.values()))
    assert all(search.comparer.way(plan) == "nearest" for plan in search.comparer.verified)


@pytest.fixture(scope="module")
def half(network):
    body = list(network.gm.children())[:5]
    return capture(nn.Sequential(*body).eval(), EXAMPLE)


def test_the_predictor_measures_and_predicts(network, half, choosable, arithmetic_backend):
    backend = arithmetic_backend()
    sum_ms = total_ms(choosable[0])
    timer = NetworkTimer(network.gm, (EXAMPLE,), backend)
    predictor = LatencyPredictor(timer, sum_ms)
    assert predictor.predict(sum_ms) == pytest.approx(timer.original.ms)  # one point: through it, slope 1 in shares
    assert predictor.invert(predictor.predict(0.4 * sum_ms)) == pytest.approx(0.4 * sum_ms)

    original, found = predictor.learn(half, 0.5 * sum_ms)
    assert original.ms == pytest.approx(predictor.original.ms)
    assert found.ms < original.ms
    assert timer.compare(half)[1].ms == pytest.approx(found.ms)
    predictor.learn(half, 0.5 * sum_ms)
    assert predictor.predict(0.5 * sum_ms) == pytest.approx(found.ms, rel=0.02)
    assert predictor.predict(sum_ms) == pytest.approx(original.ms, rel=0.02)
    assert backend.live == 0


def test_the_line_is_learnt_in_shares_and_given_in_ms(network, half, choosable, arithmetic_backend):
    """Sums may be far from what networks take; a share saved of the sum is a share of the whole until more is known."""
    predictor = LatencyPredictor(NetworkTimer(network.gm, (EXAMPLE,), arithmetic_backend()), 100.0)
    whole_ms = predictor.original.median_ms
    assert (predictor.calibration.n, predictor.calibration.residual_ms) == (1, pytest.approx(0.0, abs=1e-12))
    assert predictor.calibration.slope == pytest.approx(whole_ms / 100)
    assert predictor.calibration.predict(80.0) == pytest.approx(0.8 * whole_ms)
    for sum_ms in (50.0, 60.0):
        predictor.learn(half, sum_ms)
    line = fit_affine([1.0, 0.5, 0.6], predictor._measured_shares)
    assert predictor.calibration.n == 3
    assert predictor.calibration.predict(70.0) == pytest.approx(whole_ms * line.predict(0.7))
    assert predictor.calibration.residual_ms == pytest.approx(whole_ms * line.residual_ms)
    assert predictor.calibration.residual_ms > 0


def test_the_timer_closes_what_it_built_when_measuring_fails(network, arithmetic_backend):
    backend = arithmetic_backend(hidden=lambda model, ms: -1.0)
    timer = NetworkTimer(network.gm, (EXAMPLE,), backend)
    with pytest.raises(Exception, match="a time is finite and positive"):
        _ = timer.original
    assert backend.live == 0


def test_an_unsteady_machine_is_measured_longer(network, arithmetic_backend):
    """The spread of one of the two networks decides for both, whose rounds stay side by side."""

    class Drifting:
        def __init__(self, runner, drift):
            self._runner, self._calls, self._drift = runner, 0, drift

        def time_ms(self, inner):
            self._calls += 1
            return self._runner.time_ms(inner) * (1 + self._drift * (self._calls // 4 % 5))

        def close(self):
            self._runner.close()

    class DriftingBackend(type(arithmetic_backend())):
        drift = 0.0

        def build(self, onnx_model):
            return Drifting(super().build(onnx_model), self.drift)

    backend = DriftingBackend()
    timer = NetworkTimer(network.gm, (EXAMPLE,), backend)
    assert [len(timing.rounds_ms) for timing in timer.compare(network.gm, rounds=5)] == [5, 5]
    backend.drift = 0.1
    assert [len(timing.rounds_ms) for timing in timer.compare(network.gm, rounds=5)] == [15, 15]
    assert backend.live == 0
