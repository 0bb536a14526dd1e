"""Losses: what a choice is scored with is what the really rewritten network does."""

import copy
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from branched_network import Branched, images
from torch import nn
from two_consumers import TwoConsumers

from depthcomp.data.calibration import CalibrationSet, Layout, cross_validated, separate
from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import divergence
from depthcomp.fitting import leaning, ridge
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.calibrated import calibrated
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, Plan, SpanLimits, capture, enumerate_spans, linearize, merge
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.merge import fold_batch_norms
from fx_passes.slot_layers import load_operator

pytestmark = pytest.mark.whole


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
    return CapturedNetwork(gm)


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, DEPTH))


DEPTH = replace(DEFAULT_LIMITS, kinds=("merge", "fit", "drop"))  # narrow has tests of its own
EQUAL_SAVINGS = defaultdict(lambda: 1.0)


@pytest.fixture(scope="module")
def calibration():
    """Four images a fold."""
    return cross_validated(images(12, seed=2), seed=0)


@pytest.fixture(scope="module")
def losses(network, candidates, calibration):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcomp.importance.halving.LEAST_SCORED", len(candidates))
        return calibrated(network, candidates, calibration, EQUAL_SAVINGS, refit_kept=False, seed=0).losses


@pytest.fixture(scope="module")
def compensated(network, candidates, calibration):
    """Losses with refitted consumers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcomp.importance.halving.LEAST_SCORED", len(candidates))
        return calibrated(network, candidates, calibration, EQUAL_SAVINGS, seed=0).losses


@pytest.fixture(scope="module")
def weights(network, candidates, calibration):
    return fit_candidates(network, candidates, calibration, seed=0)


@pytest.fixture
def one_strength(monkeypatch):
    """What a fold judges is then decided."""
    monkeypatch.setattr(leaning, "STRENGTHS", (0.03,))


def rewritten(network, choice, weights):
    """Return the merged network of a plan of one choice; the merge does without `weights` where nothing is fitted."""
    plan = Plan((choice,))
    linearized = linearize(network, plan)
    for slot in kind_of(choice).slots(choice, network.piece(choice)):
        load_operator(GraphFacts(linearized), slot.node, weights[slot.node])
    return merge(linearized, plan)


def true_loss(network, choice, weights, judging):
    """Return the mean divergence of networks really rewritten, each on images that its weights have not seen."""
    with torch.no_grad():
        found = [
            divergence(batch.through(network.gm), batch.through(rewritten(network, choice, weights[choice][fold])))
            for fold, batch in judging
        ]
    return float(np.mean(found))


def test_every_kind_of_choice_is_scored(losses):
    assert {choice.kind for choice in losses} == {"merge", "fit", "drop"}
    assert all(math.isfinite(loss) and loss >= 0 for loss in losses.values())


@pytest.mark.parametrize("kind", ["merge", "drop", "fit"])
def test_a_loss_is_that_of_the_really_rewritten_network(network, calibration, losses, weights, kind):
    judging = list(calibration.judging())
    assert [fold for fold, _ in judging] == [0, 1, 2]
    chosen = [choice for choice in losses if choice.kind == kind]
    assert len(chosen) >= 2
    for choice in chosen:
        wanted = true_loss(network, choice, weights, judging)
        assert losses[choice] == pytest.approx(wanted, rel=1e-6, abs=1e-9), choice


WAYS = {
    ("fit", "inserted", False), ("fit", "none", False), ("merge", "inserted", False), ("merge", "none", False),
    ("merge", "inserted", True), ("merge", "none", True), ("merge", "original", True),
}  # fmt: skip


def ways_of(candidates):
    """Return the kinds of candidates, what follows them, and whether layers are pruned."""
    return {(c.choice.kind, c.choice.end, bool(getattr(c.choice, "pruned", ()))) for c in candidates}


@pytest.fixture(scope="module")
def others(network):
    """What DEFAULT_LIMITS leaves out: merges with layers pruned, and merges and fits with another end."""
    found = Pricing(network).candidates(enumerate_spans(network, SpanLimits(skips_pixels=False, kinds=DEPTH.kinds)))
    some = [c for c in found if c.choice.kind != "drop" and ways_of([c]) <= WAYS]
    assert ways_of(some) == WAYS
    return some


def test_pruned_layers_and_other_ends_are_scored_as_they_will_be(network, others, calibration):
    weights, judging = fit_candidates(network, others, calibration, seed=0), list(calibration.judging())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcomp.importance.halving.LEAST_SCORED", len(others))
        found = calibrated(network, others, calibration, EQUAL_SAVINGS, refit_kept=False, seed=0).losses
    assert len(found) == len(others)
    for choice, loss in found.items():
        assert loss == pytest.approx(true_loss(network, choice, weights, judging), rel=1e-6, abs=1e-9), choice


@pytest.mark.usefixtures("one_strength")
def test_behind_pruned_layers_and_other_ends_consumers_are_refitted_as_they_will_be(network, others, calibration):
    """Behind an activation, inserted or removed, a consumer makes up for what a fit misses there."""
    refitter = Refitter(network, calibration)
    some = sorted(others, key=lambda c: sorted(ways_of([c])))[::3]
    assert ways_of(some) == WAYS
    for choice, loss in calibrated(network, some, calibration, EQUAL_SAVINGS).losses.items():
        wanted = min(refitter.loss(Plan((choice,)), kept=kept) for kept in ("none", "nearest"))
        assert loss == pytest.approx(wanted, rel=1e-6, abs=1e-9), choice


@pytest.fixture
def forked():
    torch.manual_seed(0)
    return CapturedNetwork(capture(TwoConsumers().double().eval(), images(1)))


@pytest.mark.parametrize("which", ["network", "forked"])
@pytest.mark.parametrize("judging", [None, 11])
def test_with_refitted_consumers_a_loss_is_that_of_the_plan_of_this_choice_alone(which, judging, request, monkeypatch):
    """The oracle carries the plan out, and refits the first kept convolutions behind it on the way.

    Not so behind a fit that ends where it aims, where a linear consumer makes up for little.
    """
    monkeypatch.setattr(leaning, "STRENGTHS", (0.03,))
    network = request.getfixturevalue(which)
    some = Pricing(network).candidates(enumerate_spans(network, DEPTH))[:: 4 if which == "network" else 1]
    calibration = cross_validated(images(12, seed=2), seed=0)
    if judging is not None:
        calibration = separate(images(8, seed=2), images(judging, seed=3), seed=0)
    refitter, found = Refitter(network, calibration), calibrated(network, some, calibration, EQUAL_SAVINGS).losses
    assert {choice.kind for choice in found} == {"merge", "fit", "drop"}
    ends_where_it_aims = {c.choice for c in some if c.choice.kind == "fit" and c.piece.pre_activation == c.span.exit}
    assert len(ends_where_it_aims) < len(found)
    for choice, loss in found.items():
        ways = ["none"] if choice in ends_where_it_aims else ["none", "nearest"]
        wanted = min(refitter.loss(Plan((choice,)), kept=kept) for kept in ways)
        assert loss == pytest.approx(wanted, rel=1e-6, abs=1e-9), choice


def test_a_loss_is_never_more_than_without_refits(losses, compensated):
    """Held-out images may tell that what a refit restores costs more than it gives."""
    assert all(compensated[choice] <= losses[choice] + 1e-12 for choice in losses)
    assert any(compensated[choice] < 0.5 * losses[choice] for choice in losses)


def test_refitted_consumers_make_up_for_what_a_dropped_span_did(losses, compensated):
    drops = [choice for choice in losses if choice.kind == "drop"]
    assert np.mean([compensated[c] for c in drops]) < 0.7 * np.mean([losses[c] for c in drops])


@pytest.mark.parametrize(("count", "refit_kept"), [(1, True), (6, False)])
def test_a_single_image_or_the_wish_not_to_refits_no_consumer(network, candidates, count, refit_kept):
    calibration, calls = cross_validated(images(count), seed=0), []
    calibrated(
        network, candidates[::5], calibration, EQUAL_SAVINGS,
        refit_kept=refit_kept, progress=lambda what, *_: calls.append(what),
    )  # fmt: skip
    assert calls
    assert not any(what.startswith("refitting consumers") for what in calls)


@pytest.mark.parametrize("most", [1, 2])
def test_losses_are_taken_on_so_many_judging_batches_at_most(
    network, candidates, calibration, weights, monkeypatch, most
):
    monkeypatch.setattr("depthcomp.importance.true_loss.MOST_JUDGING", most)
    fits = [c for c in candidates if c.choice.kind == "fit"][::5]
    for choice, loss in calibrated(network, fits, calibration, EQUAL_SAVINGS, refit_kept=False).losses.items():
        some = list(calibration.judging())[:most]
        assert loss == pytest.approx(true_loss(network, choice, weights, some), rel=1e-6), choice


def test_a_choice_that_makes_the_loss_nan_does_not_keep_a_better_one_from_the_next_batch(
    network, candidates, calibration, monkeypatch
):
    monkeypatch.setattr("depthcomp.importance.halving.LEAST_SCORED", 1)
    some, journal = candidates[:4], ScoreJournal()
    for candidate, loss in zip(some, (3.0, math.nan, 1.0, 2.0), strict=True):
        for way in ("", " with refitted readers"):
            journal.add(f"{candidate.choice}{way} on batch 0", loss, 0.0)
            for batch in range(1, 99):
                journal.add(f"{candidate.choice}{way} on batch {batch}", 100.0, 0.0)
    savings = dict.fromkeys((c.choice for c in some), 1.0)
    found = list(calibrated(network, some, calibration, savings, journal=journal).losses.values())
    assert found[0] == 3.0
    assert math.isnan(found[1])
    assert min(found[2:]) > 3.0


def test_separate_images_alone_judge(network, candidates):
    layout = Layout(8, torch.channels_last)
    calibration = separate(images(8, seed=2), images(11, seed=3), seed=0, layout=layout)
    some = [c for c in candidates if c.choice.kind == "fit"][::5]
    weights = fit_candidates(network, some, calibration, seed=0)
    judging = list(calibration.judging())
    assert [fold for fold, _ in judging] == [1, 1]
    for choice, loss in calibrated(network, some, calibration, EQUAL_SAVINGS, refit_kept=False).losses.items():
        assert weights[choice].keys() == {1}
        assert loss == pytest.approx(true_loss(network, choice, weights, judging), rel=1e-6), choice


def test_one_image_judges_what_was_fitted_to_it(network, candidates):
    calibration, some = cross_validated(images(1), seed=0), candidates[::5]
    assert {c.choice.kind for c in some} == {"merge", "fit", "drop"}
    weights = fit_candidates(network, some, calibration, seed=0)
    for choice, loss in calibrated(network, some, calibration, EQUAL_SAVINGS, seed=0).losses.items():
        wanted = true_loss(network, choice, weights, [(0, Inputs.of(images(1)))])
        assert loss == pytest.approx(wanted, rel=1e-6, abs=1e-9), choice


def fitted(weights):
    """Return the one operator of each fit, by fold."""
    return {
        choice: {fold: operator for fold, body in by_fold.items() for operator in body.values()}
        for choice, by_fold in weights.items()
        if choice.kind == "fit"
    }


def same(one, other, atol=0.0):
    return all(torch.allclose(getattr(one, p), getattr(other, p), rtol=0, atol=atol) for p in ("weight", "bias"))


@pytest.mark.usefixtures("one_strength")
@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_images_do_not_show_in_fits_that_have_not_seen_them(network, candidates, calibration, unseen):
    batches = [b.each(lambda t: 3 * t + 1) if fold == unseen else b for fold, b in enumerate(calibration.batches)]
    changed = replace(calibration, batches=tuple(batches))
    one, other = (fitted(fit_candidates(network, candidates, c, seed=0)) for c in (calibration, changed))
    for choice, by_fold in one.items():
        for fold, operator in by_fold.items():
            assert same(operator, other[choice][fold]) is (fold == unseen), (choice, fold)


@pytest.mark.usefixtures("one_strength")
@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_a_fit_without_a_fold_is_that_on_the_others_alone(network, candidates, calibration, monkeypatch, unseen):
    """All pixels are sampled here, so both solve the same equations."""
    monkeypatch.setattr(ridge, "UNJUDGED_STRENGTH", *leaning.STRENGTHS)
    others = tuple(batch for fold, batch in enumerate(calibration.batches) if fold != unseen)
    alone = fitted(fit_candidates(network, candidates, CalibrationSet(others, (0, 0), judges=()), seed=0))
    found = fitted(fit_candidates(network, candidates, calibration, seed=0))
    assert found.keys() == alone.keys()
    for choice, by_fold in found.items():
        assert by_fold.keys() == {0, 1, 2}
        assert same(by_fold[unseen], alone[choice][0], atol=1e-8), choice


def test_the_scored_operator_is_an_oracle_of_the_merge(network, weights):
    """A merge choice's operator equals what merge itself derives."""
    for choice, by_fold in weights.items():
        if choice.kind == "merge":
            merged = merge(linearize(network, Plan((choice,))), Plan((choice,)))
            conv = merged.get_submodule(
                next(str(node.target) for node in merged.graph.nodes if "merged" in str(node.target))
            )
            for body in by_fold.values():
                (operator,) = body.values()
                assert torch.allclose(conv.weight, operator.weight, atol=1e-9)
                assert torch.allclose(conv.bias, operator.bias, atol=1e-9)


def test_a_dropped_span_has_no_operator(weights):
    dropped = [by_fold for choice, by_fold in weights.items() if choice.kind == "drop"]
    assert dropped
    assert all(by_fold == {0: {}, 1: {}, 2: {}} for by_fold in dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_have_the_images_precision(network, candidates, dtype):
    single, calibration = (
        CapturedNetwork(copy.deepcopy(network.gm).to(dtype)),
        cross_validated(images(6).to(dtype), seed=0),
    )
    for by_fold in fitted(fit_candidates(single, candidates[::5], calibration)).values():
        assert {operator.weight.dtype for operator in by_fold.values()} == {dtype}


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


def test_the_same_seed_gives_the_same_losses(network, candidates, calibration):
    one, two = (calibrated(network, candidates[::5], calibration, EQUAL_SAVINGS, seed=4).losses for _ in range(2))
    assert one == two


def test_the_network_and_the_images_are_not_changed(network, candidates, calibration):
    text, state = str(network.gm.graph), copy.deepcopy(network.gm.state_dict())
    batches = [batch.held.clone() for batch in calibration.batches]
    calibrated(network, candidates[::5], calibration, EQUAL_SAVINGS)
    assert str(network.gm.graph) == text
    assert all(torch.equal(value, network.gm.state_dict()[name]) for name, value in state.items())
    assert all(torch.equal(kept, batch.held) for kept, batch in zip(batches, calibration.batches, strict=True))


def passes_of(calls):
    return {what.partition(", ")[2] for what, _, _ in calls if what.startswith("fitting")}


def test_several_passes_for_little_memory_give_the_same(network, candidates, calibration, weights, monkeypatch):
    monkeypatch.setattr("depthcomp.fitting.memory.PARTS", 1)
    memory, calls = FitMemory(3, 5.5), []
    assert all(memory.is_whole(slot.operator) for c in candidates for slot in c.slots)
    found = fit_candidates(
        network, candidates, calibration, seed=0, memory=memory, progress=lambda *call: calls.append(call)
    )
    assert len(passes_of(calls)) > 1
    assert found.keys() == weights.keys()
    again = fitted(found)
    for choice, by_fold in fitted(weights).items():
        assert all(same(operator, again[choice][fold], atol=1e-8) for fold, operator in by_fold.items()), choice


def test_a_fit_that_takes_too_much_memory_is_of_few_patterns(network, candidates, calibration, weights):
    memory = FitMemory(3, 0.3)  # 40 unknowns: 13 patterns over 3 channels, 6 over 6, 5 over 8
    found = fit_candidates(network, candidates, calibration, seed=0, memory=memory)
    assert found.keys() == weights.keys()
    cut = {
        c.choice: memory.patterns(slot.operator)
        for c in candidates
        for slot in c.slots
        if not memory.is_whole(slot.operator)
    }
    whole = fitted(weights)
    assert set(cut.values()) == {5, 6, 13}
    for choice, by_fold in fitted(found).items():
        for fold, operator in by_fold.items():
            if choice in cut:
                kernels = operator.weight.flatten(2).flatten(0, 1)
                assert int(torch.linalg.matrix_rank(kernels, rtol=1e-9)) <= cut[choice], choice
            else:
                assert same(operator, whole[choice][fold], atol=1e-2), choice  # other pixels were sampled


def test_fits_of_few_patterns_lose_little_more_than_whole_ones(network, candidates, calibration, losses):
    memory = FitMemory(3, 0.3)
    fits = [c for c in candidates if c.choice.kind == "fit" and not memory.is_whole(c.slots[0].operator)]
    found = calibrated(network, fits, calibration, EQUAL_SAVINGS, refit_kept=False, memory=memory).losses
    centres = {(c.entry, c.exit): losses[c] for c in losses if c.kind == "fit" and c.kernel == (1, 1)}
    places = {c.choice: (c.span.entry, c.span.exit) for c in fits}
    pairs = [(found[c], losses[c], centres[place]) for c, place in places.items() if place in centres]
    assert len(pairs) > 5
    cut, whole, centre = np.mean(pairs, axis=0)
    assert whole < cut < centre


def test_progress_is_reported_to_the_end(network, candidates, calibration):
    calls = []
    calibrated(
        network, candidates[::4], calibration, EQUAL_SAVINGS,
        progress=lambda what, done, total: calls.append((what, done, total)),
    )  # fmt: skip
    stages = {what: [(d, t) for w, d, t in calls if w == what] for what, _, _ in calls}
    assert {what.split(",")[0] for what in stages} == {"fitting", "solving", "refitting consumers", "scoring"}
    for seen in stages.values():
        total = seen[-1][1]
        assert seen == [(done, total) for done in range(1, total + 1)]


def test_more_judging_images_refine_the_better_half(network, candidates, calibration, monkeypatch):
    monkeypatch.setattr("depthcomp.importance.halving.LEAST_SCORED", 1)
    savings = {c.choice: 1.0 + index % 3 for index, c in enumerate(candidates)}
    monkeypatch.setattr("depthcomp.importance.true_loss.MOST_JUDGING", 1)
    first = calibrated(network, candidates, calibration, savings).losses
    monkeypatch.setattr("depthcomp.importance.true_loss.MOST_JUDGING", 2)
    refined = calibrated(network, candidates, calibration, savings).losses
    changed = {choice for choice in first if first[choice] != refined[choice]}
    assert first.keys() == refined.keys()
    assert len(changed) == (len(first) + 1) // 2
    dearest = max(first[choice] / savings[choice] for choice in changed)
    assert dearest <= min(first[c] / savings[c] for c in first.keys() - changed) + 1e-12
