"""Losses: what a choice is scored with is what the really rewritten network does."""

import copy
import math
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from depthcomp import importance
from depthcomp.importance import calibrated, divergence, fit_candidates, refit
from depthcomp.pricing import Pricing
from fx_passes import Plan, capture, enumerate_spans, linearize, merge, placed_convolutions
from fx_passes.merge import fold_batch_norms


class Branched(nn.Module):
    """A stem, a strided convolution, an inverted residual, a block with a projection; class scores."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.inverted = InvertedResidual(6, 6, 1, 2)
        self.down, self.act = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
        self.long = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, padding=1))
        self.short = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        x = self.act(self.down(self.inverted(self.stem(x))))
        x = self.long(x) + self.short(x)
        return self.head(x.mean((2, 3)))


def images(count=6, size=12, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Branched().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    gm = capture(model.eval(), images(1))
    fold_batch_norms(gm)
    gm.recompile()
    return gm


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network))


FIT_ON = [images(4, seed=2), images(4, seed=3), images(4, seed=4)]
HELD_OUT = [images(5, seed=5)]
EQUAL_SAVINGS = defaultdict(lambda: 1.0)


@pytest.fixture(scope="module")
def losses(network, candidates):
    return calibrated(network, candidates, FIT_ON, HELD_OUT, EQUAL_SAVINGS, seed=0)


def rewritten(network, plan, operators):
    """Return the merged network of a plan whose fitted convolutions have these weights."""
    linearized = linearize(network, plan)
    by_exit = {choice.exit: operators[choice] for choice in plan if choice.kind == "fit"}
    for place, operator in zip(placed_convolutions(linearized, plan), by_exit.values(), strict=True):
        place.load(operator)
    return merge(linearized, plan)


def true_loss(network, changed, batches):
    with torch.no_grad():
        return float(np.mean([divergence(network(batch), changed(batch)) for batch in batches]))


def scores(seed):
    return torch.randn(11, 7, generator=torch.Generator().manual_seed(seed)) * 3


def test_equal_outputs_have_no_divergence():
    for output in (scores(0), torch.randn(2, 3, 5, 5), [scores(0), torch.randn(2, 3, 5, 5)], {"a": torch.zeros(3)}):
        assert divergence(output, copy.deepcopy(output)) == pytest.approx(0.0, abs=1e-12)


def test_class_scores_are_compared_by_kl():
    p, q = (torch.softmax(scores(seed).double(), 1).numpy() for seed in (0, 1))
    wanted = np.mean([scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert divergence(scores(0), scores(1)) == pytest.approx(wanted, rel=1e-9)


def test_class_scores_may_be_shifted():
    assert divergence(scores(0), scores(0) + 5) == pytest.approx(0.0, abs=1e-6)


def test_other_outputs_are_compared_by_their_relative_error():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    wanted = ((a - b) ** 2).mean() / ((a - a.mean()) ** 2).mean()
    assert divergence(a, b) == pytest.approx(float(wanted), rel=1e-5)
    assert divergence((a, scores(0)), (b, scores(0))) == pytest.approx(float(wanted) / 2, rel=1e-5)
    assert divergence(a, 3 * a) == pytest.approx(divergence(10 * a, 30 * a), rel=1e-5)


def test_what_is_no_floating_point_tensor_is_passed_over():
    a, b = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    assert divergence((a, torch.zeros(2, dtype=torch.long), 3), (b, torch.ones(2, dtype=torch.long), 4)) == (
        divergence(a, b)
    )
    assert divergence(torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)) == 0.0


def test_a_single_score_is_no_class():
    a, b = torch.randn(9, 1), torch.randn(9, 1)
    assert divergence(a, b) > 0


def test_every_kind_of_choice_is_scored(losses):
    assert {choice.kind for choice in losses} == {"merge", "fit", "drop"}
    assert all(math.isfinite(loss) and loss >= 0 for loss in losses.values())


@pytest.mark.parametrize("kind", ["merge", "drop", "fit"])
def test_a_loss_is_that_of_the_really_rewritten_network(network, candidates, losses, kind):
    operators = fit_candidates(network, candidates, FIT_ON, seed=0)
    chosen = [choice for choice in losses if choice.kind == kind]
    assert len(chosen) >= 2
    for choice in chosen:
        changed = rewritten(network, Plan((choice,)), operators)
        assert losses[choice] == pytest.approx(true_loss(network, changed, HELD_OUT), rel=1e-6, abs=1e-9), choice


def test_the_scored_operator_is_an_oracle_of_the_merge(network, candidates):
    """A merge choice's operator, put in by `place.load`'s counterpart, equals what merge itself derives."""
    operators = fit_candidates(network, candidates, FIT_ON, seed=0)
    for candidate in candidates:
        if candidate.choice.kind == "merge":
            merged = merge(linearize(network, Plan((candidate.choice,))), Plan((candidate.choice,)))
            conv = merged.get_submodule(
                next(str(node.target) for node in merged.graph.nodes if "merged" in str(node.target))
            )
            assert torch.allclose(conv.weight, operators[candidate.choice].weight, atol=1e-9)


def test_fits_lose_less_than_merges_of_the_same_span(losses):
    """The exact merge takes activations for identity; the fitted kernel of the same size has seen data."""
    fits = {(c.entry, c.exit, c.kernel): loss for c, loss in losses.items() if c.kind == "fit"}
    both = [
        (loss, fits[c.entry, c.exit, c.kernel])
        for c, loss in losses.items()
        if c.kind == "merge" and (c.entry, c.exit, c.kernel) in fits
    ]
    assert both
    assert np.mean([fitted for _, fitted in both]) < np.mean([merged for merged, _ in both])


def test_the_same_seed_gives_the_same_losses(network, candidates, losses):
    assert calibrated(network, candidates, FIT_ON, HELD_OUT, EQUAL_SAVINGS, seed=0) == losses


def test_the_network_is_not_changed(network, candidates):
    text, state = str(network.graph), copy.deepcopy(network.state_dict())
    some = candidates[::5]
    calibrated(network, some, FIT_ON, HELD_OUT, EQUAL_SAVINGS)
    refit(network, Plan((next(c.choice for c in some if c.choice.kind == "fit"),)), FIT_ON)
    assert str(network.graph) == text
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_several_passes_for_little_memory_give_the_same(network, candidates, losses, monkeypatch):
    monkeypatch.setattr(importance, "MEMORY_BYTES", 1)
    found = calibrated(network, candidates, FIT_ON, HELD_OUT, EQUAL_SAVINGS, seed=0)
    assert found.keys() == losses.keys()
    for choice, loss in losses.items():
        assert found[choice] == pytest.approx(loss, rel=1e-6, abs=1e-9)


def test_systems_that_are_too_large_are_left_out(network, candidates, losses, monkeypatch):
    monkeypatch.setattr(importance, "LARGEST_SYSTEM", 30)
    found = calibrated(network, candidates, FIT_ON, HELD_OUT, EQUAL_SAVINGS, seed=0)
    assert {c for c in losses if c.kind != "fit"} <= found.keys() < losses.keys()
    assert any(choice.kind == "fit" for choice in found)


def test_progress_is_reported_to_the_end(network, candidates):
    calls = []
    calibrated(
        network, candidates[::4], FIT_ON, [*HELD_OUT, images(3)], EQUAL_SAVINGS,
        progress=lambda what, done, total: calls.append((what, done, total)),
    )  # fmt: skip
    assert all(0 < done <= total for _, done, total in calls)
    assert {what.split(",")[0] for what, _, _ in calls} >= {"fitting", "scoring"}


def test_more_held_out_images_refine_the_better_half(network, candidates, monkeypatch):
    monkeypatch.setattr(importance, "LEAST_SCORED", 1)
    more = [*HELD_OUT, images(5, seed=9)]
    first, refined = (calibrated(network, candidates, FIT_ON, batches, EQUAL_SAVINGS) for batches in (HELD_OUT, more))
    changed = {choice for choice in first if first[choice] != refined[choice]}
    assert first.keys() == refined.keys()
    assert max(first[choice] for choice in changed) <= min(first[c] for c in first.keys() - changed) + 1e-12


def fits_of(candidates, *exits):
    return [c.choice for c in candidates if c.choice.kind == "fit" and c.choice.exit in exits]


def test_a_lone_refit_is_the_fit(network, candidates):
    """All pixels are sampled here, so both solve the same equations."""
    operators = fit_candidates(network, candidates, FIT_ON, seed=0)
    fits = [c.choice for c in candidates if c.choice.kind == "fit"]
    for choice in fits[::7]:
        plan = Plan((choice,))
        place = placed_convolutions(refit(network, plan, FIT_ON), plan)[0]
        assert torch.allclose(place.operator.weight, operators[choice].weight, atol=1e-8), choice
        assert torch.allclose(place.operator.bias, operators[choice].bias, atol=1e-8), choice


def test_later_fits_make_up_for_earlier_ones(network, candidates):
    """Refitted front to back, the network's features come closer to the original's on the images of the fit."""
    stem = next(c.choice for c in candidates if c.choice.kind == "fit" and c.span.entry == "x")
    later = next(
        c.choice for c in candidates
        if c.choice.kind == "fit" and c.choice.entry == stem.exit and c.choice.kernel == (3, 3)
    )  # fmt: skip
    plan = Plan((stem, later))
    operators = fit_candidates(network, candidates, FIT_ON, seed=0)
    alone = rewritten(network, plan, operators)
    together = merge(refit(network, plan, FIT_ON), plan)
    assert true_loss(network, together, FIT_ON) < true_loss(network, alone, FIT_ON)


def test_fits_in_parallel_branches_are_refitted(network, candidates):
    fits = [c.choice for c in candidates if c.choice.kind == "fit"]
    long = [choice for choice in fits if choice.exit.startswith("long")]
    short = [choice for choice in fits if choice.exit.startswith("short")]
    assert long
    assert short
    for plan in (Plan((long[-1], short[-1])), Plan((long[0], short[-1]))):
        changed = merge(refit(network, plan, FIT_ON), plan)
        assert math.isfinite(true_loss(network, changed, HELD_OUT))


def test_refits_repeat(network, candidates):
    fits = [c.choice for c in candidates if c.choice.kind == "fit"]
    plan = Plan((fits[-1],))
    one, two = (refit(network, plan, FIT_ON, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_an_empty_plan_is_the_network(network):
    same = refit(network, Plan(), FIT_ON)
    assert torch.equal(same(HELD_OUT[0]), network(HELD_OUT[0]))
