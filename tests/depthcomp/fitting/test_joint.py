"""Losses of plans whose choices are fitted alone: they are those of the really rewritten networks."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from branched_network import Branched, images

from depthcomp.data.calibration import cross_validated
from depthcomp.data.output_loss import divergence
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.joint import JointLosses
from depthcomp.importance.calibrated import calibrated
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, Plan, capture, enumerate_spans, linearize, merge
from fx_passes.facts import GraphFacts
from fx_passes.merge import fold_batch_norms
from fx_passes.slot_layers import load_operator
from fx_passes.trial import trial_of

pytestmark = pytest.mark.whole

EQUAL_SAVINGS = defaultdict(lambda: 1.0)


DEPTH = replace(DEFAULT_LIMITS, kinds=("merge", "fit", "drop"))  # narrow has tests of its own


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    gm = capture(Branched().double().eval(), images(1))
    fold_batch_norms(gm)
    return CapturedNetwork(gm)


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, DEPTH))


@pytest.fixture(scope="module")
def calibration():
    """Three batches, one in each fold."""
    return cross_validated(images(12, seed=2), seed=0)


@pytest.fixture(scope="module")
def joint(network, candidates, calibration):
    return JointLosses(network, candidates, calibration)


def alone(network, candidates, calibration, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcomp.importance.halving.LEAST_SCORED", len(candidates))
        return calibrated(network, candidates, calibration, EQUAL_SAVINGS, **options).losses


def test_a_plan_of_one_choice_loses_what_the_choice_loses(network, candidates, calibration, joint):
    wanted = alone(network, candidates, calibration, refit_kept=False)
    found = {c.choice: max(joint.loss(Plan.of([c.choice]), refitted=False), 0.0) for c in candidates}
    assert found == pytest.approx(dict(wanted), rel=1e-6, abs=1e-9)


def test_with_refitted_consumers_too(network, candidates, calibration, joint):
    wanted = alone(network, candidates, calibration)
    plans = {c.choice: Plan.of([c.choice]) for c in candidates}
    found = {
        choice: max(min(joint.loss(plan, refitted=way) for way in (False, True)), 0.0)
        for choice, plan in plans.items()
    }  # fmt: skip
    assert found == pytest.approx(dict(wanted), rel=1e-6, abs=1e-9)
    assert any(joint.loss(plan, refitted=True) < joint.loss(plan, refitted=False) for plan in plans.values())


def pairs(candidates):
    """Return plans of two choices that change different nodes."""
    apart = [
        (one, other)
        for one, other in itertools.combinations(candidates, 2)
        if set(one.span.nodes).isdisjoint(other.span.nodes)
    ]
    return apart[:: max(1, len(apart) // 12)]


def test_a_plan_of_two_choices_runs_both(network, candidates, calibration, joint):
    weights = fit_candidates(network, candidates, calibration)
    for one, other in pairs(candidates):
        plan, losses = Plan.of([one.choice, other.choice]), []
        for batch, fold in zip(calibration.batches, calibration.folds, strict=True):
            linearized = GraphFacts(linearize(network, plan))
            for candidate in (one, other):
                for name in (slot.node for slot in candidate.slots):
                    load_operator(linearized, name, weights[candidate.choice][fold][name])
            with torch.no_grad():
                losses.append(divergence(*(batch.through(gm) for gm in (network.gm, merge(linearized.gm, plan)))))
        assert joint.loss(plan, refitted=False) == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_only_consumers_behind_profiting_choices_are_refitted(network, candidates, calibration, joint):
    gains = {c.choice: joint.loss(Plan.of([c.choice]), refitted=True) for c in candidates}
    bare = {c.choice: joint.loss(Plan.of([c.choice]), refitted=False) for c in candidates}
    changed = [choice for choice, loss in gains.items() if loss != bare[choice]]
    some = frozenset(changed[::2])
    chosen = JointLosses(network, candidates, calibration, profiting=some)
    for choice in changed:
        wanted = gains if choice in some else bare
        assert chosen.loss(Plan.of([choice]), refitted=True) == pytest.approx(wanted[choice], rel=1e-9)
    assert 0 < len(some) < len(changed)


def test_a_consumer_within_another_change_is_not_touched(network, candidates, joint):
    """It is gone, or a new layer with its name stands there."""
    plans = [Plan.of([one.choice, other.choice]) for one, other in pairs(candidates)]
    assert all(math.isfinite(joint.loss(plan, refitted=True)) for plan in plans)


def test_choices_are_fitted_once(network, candidates, calibration, monkeypatch):
    asked = []

    def counted(network, some, *arguments, **options):
        asked.append([candidate.choice for candidate in some])
        return fit_candidates(network, some, *arguments, **options)

    monkeypatch.setattr("depthcomp.fitting.joint.fit_candidates", counted)
    joint = JointLosses(network, candidates, calibration)
    one, other, *_ = (candidate.choice for candidate in candidates)
    joint.fit([Plan.of([one])])
    joint.loss(Plan.of([one]), refitted=False)
    joint.fit([Plan.of([one]), Plan.of([other])])
    assert asked == [[one], [other]]


def test_outputs_that_are_nan_lose_infinitely(network, candidates, calibration, monkeypatch):
    def broken(*arguments):
        found = trial_of(*arguments)
        found.gm.register_forward_hook(lambda module, inputs, output: output * math.nan)
        return found

    monkeypatch.setattr("depthcomp.fitting.joint.trial_of", broken)
    joint = JointLosses(network, candidates, calibration)
    assert joint.loss(Plan.of([candidates[0].choice]), refitted=False) == math.inf
