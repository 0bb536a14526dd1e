"""The methods by name: what each may choose from, how it chooses, and that what it returns holds its budget."""

import functools

import numpy as np
import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from depthcomp import compress_depth
from depthcomp.data.calibration import cross_validated
from depthcomp.data.output_loss import divergence
from depthcomp.errors import BudgetInfeasibleError, DepthCompError
from depthcomp.importance.calibrated import calibrated
from depthcomp.importance.curvature_importance import CurvatureImportance
from depthcomp.latency.pricing import Pricing
from depthcomp.methods.baselines import BaselineFrontier, Materials
from depthcomp.methods.depthshrinker import whole_blocks
from depthcomp.methods.random_rewrites import at_random
from depthcomp.methods.registry import METHODS, find_method
from depthcomp.methods.uniform import evenly_spread
from fx_passes import CapturedNetwork, Plan, capture, fold_batch_norms, linearize, merge
from fx_passes.kinds import kind_names

pytestmark = pytest.mark.whole

SLOW = ("kim23", "uniform")  # each takes ten seconds or so; the others go the same ways
RIVALS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in METHODS if name != "depthcomp"
]
CHAIN = torch.zeros(1, 3, 16, 16)


def chain_of_blocks():
    """Return a stem, three inverted residuals of which the middle one changes the width, and a head."""
    torch.manual_seed(0)
    blocks = [InvertedResidual(6, 6, 1, 3), InvertedResidual(6, 8, 2, 3), InvertedResidual(8, 8, 1, 3)]
    stem = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(768, 4)).eval()


@pytest.fixture(scope="module")
def network():
    gm = capture(chain_of_blocks(), CHAIN)
    fold_batch_norms(gm)
    gm.recompile()
    return CapturedNetwork(gm)


def materials_of(network, candidates, losses=None, seed=0):
    """Return materials in which each rewrite saves as many ms as it has nodes."""
    savings = {candidate.choice: float(len(candidate.span.nodes)) for candidate in candidates}
    return Materials(network, candidates, losses or {}, savings, 100.0, seed)


def candidates_of(network, name):
    method = find_method(name)
    return method.candidates(network, Pricing(network).candidates(network.spans(method.limits)))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        DepthCompError,
        match=r"method \(='breadth'\) must be one of depth, depthcomp, depthshrinker, grail, kim23,",
    ):
        compress_depth(tiny_net(), "80%", data=images(), method="breadth")


@pytest.mark.parametrize("name", ["depthcomp", "depthshrinker"])
def test_choices_are_scored_as_the_method_carries_them_out(name, arithmetic_backend, monkeypatch):
    """A method that fits nothing is told what choices cost without any refit."""

    class ReachedError(Exception):
        pass

    def score_all(importance, context):
        raise ReachedError(context.refit_kept)

    monkeypatch.setattr(CurvatureImportance, "score_all", score_all)
    with pytest.raises(ReachedError, match=str(METHODS[name].fits)):
        compress_depth(tiny_net(), "80%", data=images(), method=name, backend=arithmetic_backend())


def test_kim23_may_only_merge_all_convolutions_of_a_span(network):
    choices = [candidate.choice for candidate in candidates_of(network, "kim23")]
    assert {choice.kind for choice in choices} == {"merge"}
    assert {choice.end for choice in choices} == {"original", "inserted"}
    assert not any(choice.pruned for choice in choices)


def test_layermerge_may_prune_but_not_fit(network):
    choices = [candidate.choice for candidate in candidates_of(network, "layermerge")]
    assert {choice.kind for choice in choices} == {"merge", "drop"}
    assert any(choice.pruned for choice in choices if choice.kind == "merge")
    assert {choice.end for choice in choices if choice.kind == "merge"} == {"original"}


def test_layermerge_drops_no_block_whose_convolutions_change_the_width(network):
    dropped = [c.span for c in candidates_of(network, "layermerge") if c.choice.kind == "drop"]
    everything = [c.span for c in candidates_of(network, "depthcomp") if c.choice.kind == "drop"]
    assert dropped
    assert any(span.entry == "_1" and "add" in span.exit for span in everything)
    assert not any("add" in span.exit for span in dropped)


def test_depthshrinker_takes_whole_blocks_in_the_order_of_their_loss(network):
    candidates = candidates_of(network, "depthshrinker")
    rng = np.random.default_rng(0)
    losses = {candidate.choice: float(rng.random()) for candidate in candidates}
    plans = list(whole_blocks(materials_of(network, candidates, losses)))
    assert [len(plan) for plan in plans] == [1, 2, 3]
    assert [losses[c.choice] for c in plans[-1]] == sorted(losses[c.choice] for c in plans[-1])
    assert {c.piece.pre_activation for c in plans[-1]} == {"add", "_3_conv_3", "add_1"}
    assert all(sum(name.endswith("conv_3") for name in c.span.nodes) == 1 for c in plans[-1])


def test_even_plans_touch_all_parts_of_the_network(network):
    candidates = candidates_of(network, "uniform")
    order = network.order
    plans = list(evenly_spread(materials_of(network, candidates)))
    largest = max(map(len, plans))
    for plan in plans:
        assert {c.span.stop - c.span.start for c in plan} == {1}
        exits = [order[c.span.exit] for c in plan]
        assert exits == sorted(set(exits))
    places = [order[c.span.exit] for c in next(plan for plan in plans if len(plan) == largest)]
    assert (places[0], places[largest // 2]) in {tuple(order[c.span.exit] for c in plan) for plan in plans}


def test_random_plans_come_from_the_seed_and_do_not_overlap(network):
    candidates = candidates_of(network, "random")
    plans = list(at_random(materials_of(network, candidates, seed=3)))
    for plan in plans[::7]:
        nodes = [name for candidate in plan for name in candidate.span.nodes]
        assert len(nodes) == len(set(nodes))

    def drawn(seed):
        return [[c.choice for c in plan] for plan in at_random(materials_of(network, candidates, seed=seed))]

    assert drawn(3) == [[c.choice for c in plan] for plan in plans]
    assert drawn(4) != drawn(3)
    assert {choice.kind for plan in drawn(3) for choice in plan} == set(kind_names())


def test_a_baseline_frontier_gives_the_slowest_plan_within_a_sum(network):
    candidates = candidates_of(network, "random")
    materials = materials_of(network, candidates)
    baseline = BaselineFrontier(at_random(materials), materials)
    assert (np.diff(baseline.costs) > 0).all()
    assert baseline.costs[-1] == 100.0
    assert baseline.plan(len(baseline) - 1) == ()
    for k in (0, len(baseline) // 2, len(baseline) - 1):
        plan = baseline.plan(k)
        assert 100.0 - sum(materials.savings_ms[choice] for choice in plan) == pytest.approx(baseline.costs[k])
        assert baseline.at(baseline.costs[k]) == k
        assert baseline.at(baseline.costs[k] + 1e-9) == k
    with pytest.raises(BudgetInfeasibleError, match=r"the fastest plan sums to .* give a larger budget"):
        baseline.at(baseline.costs[0] - 1)


@pytest.fixture(scope="module")
def results(arithmetic_backend):
    """A function from a method's name to what it makes of the network, made once."""

    @functools.cache
    def compressed(name):
        data = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(8))
        return compress_depth(chain_of_blocks(), "85%", data=data, backend=arithmetic_backend(), method=name, seed=1)

    return compressed


@pytest.mark.parametrize("name", RIVALS)
def test_every_method_meets_the_budget_and_returns_what_can_be_trained(results, name):
    result = results(name)
    assert result.measured_ms <= result.budget_ms
    assert len(result.plan) > 0
    kinds = {
        "kim23": {"merge"}, "layermerge": {"merge", "drop"}, "depthshrinker": {"merge"}, "width": {"narrow"},
    }  # fmt: skip
    assert {choice.kind for choice in result.plan} <= kinds.get(name, set(kind_names()))
    batch = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        torch.testing.assert_close(merge(result.trainable, result.plan)(batch), result.model(batch))
        torch.testing.assert_close(result.trainable(batch), result.model(batch), rtol=1e-3, atol=1e-4)


def differs_from_merged_weights(result):
    """Return how far the network in training is from what merging alone makes of its plan, on new images."""
    plain = linearize(capture(chain_of_blocks(), CHAIN), result.plan)
    batch = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((result.trainable(batch) - plain(batch)).abs().max())


@pytest.mark.parametrize("name", ["layermerge", "depthshrinker"])
def test_the_papers_methods_start_from_merged_weights_not_from_fits(results, name):
    assert differs_from_merged_weights(results(name)) < 1e-5


def test_fits_of_a_baseline_are_solved_for(results):
    assert differs_from_merged_weights(results("random")) > 1e-3


def test_what_asks_for_no_loss_gets_none(results):
    assert {record.loss for record in results("random").spans} == {0.0}
    assert results("random").loss > 0  # the true one


@pytest.mark.parametrize("name", ["kim23", "layermerge"])
def test_calibrated_importance_is_that_of_the_merge_with_its_own_end_and_prunings(network, name):
    data = cross_validated(torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4)), seed=0)
    candidates = candidates_of(network, name)
    merges = [c for c in candidates if c.choice.kind == "merge"]
    special = [c for c in merges if c.choice.pruned or c.choice.end == "inserted"]
    savings = {candidate.choice: 1.0 for candidate in candidates}
    losses = calibrated(network, candidates, data, savings, refit_kept=False).losses
    checked = 0
    for choice in (candidate.choice for candidate in special[:: len(special) // 6 + 1]):
        plan = Plan((choice,))
        changed = merge(linearize(network, plan), plan)
        with torch.no_grad():
            wanted = [divergence(batch.through(network.gm), batch.through(changed)) for _, batch in data.judging()]
        assert losses[choice] == pytest.approx(np.mean(wanted), rel=1e-3)
        checked += 1
    assert checked > 1


def test_a_method_without_a_choice_says_how_far_it_gets(arithmetic_backend):
    with pytest.raises(BudgetInfeasibleError, match=r"is the best|the fastest"):
        compress_depth(
            tiny_net(), "20%", example_inputs=EXAMPLE, data=images(), backend=arithmetic_backend(), method="kim23"
        )
