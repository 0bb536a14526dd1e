"""Consumers of a change, refitted for one choice alone."""

from dataclasses import replace

import pytest
import torch
from two_consumers import TwoConsumers

from depthcomp.data.calibration import cross_validated
from depthcomp.fitting import leaning
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.consumers import refit_consumers
from depthcomp.fitting.kept_slots import consumers_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from depthcomp.progress import silent
from fx_passes import CapturedNetwork, capture, enumerate_spans


def images(count=12, seed=1):
    return torch.randn(count, 3, 11, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CapturedNetwork(capture(TwoConsumers().double().eval(), images(1)))


@pytest.fixture(scope="module")
def calibration():
    return cross_validated(images(), seed=0)


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, DEFAULT_LIMITS))


@pytest.fixture(scope="module")
def weights(network, candidates, calibration):
    """Return those of the bodies that have not seen the second fold."""
    return {choice: by_fold[1] for choice, by_fold in fit_candidates(network, candidates, calibration).items()}


def refitted(network, candidates, weights, calibration, mib=64.0, progress=silent):
    found = refit_consumers(
        network, candidates, {choice: {1: body} for choice, body in weights.items()}, calibration, [1],
        seed=0, memory=FitMemory(3, mib), progress=progress,
    )  # fmt: skip
    return {choice: by_node for (choice, _), by_node in found.items()}


def same(one, other):
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_every_consumer_is_refitted_and_keeps_its_shape(network, candidates, weights, calibration):
    found = refitted(network, candidates, weights, calibration)
    assert found.keys() == weights.keys()
    exits = {choice.exit for choice in found}
    assert max(len(consumers_of(network, exit_)) for exit_ in exits) == 2
    aimed = {c.choice for c in candidates if c.choice.kind == "fit" and c.piece.pre_activation == c.span.exit}
    assert aimed
    assert not any(found[choice] for choice in aimed)
    for choice, by_node in found.items():
        kept = {slot.node: slot.operator for slot in consumers_of(network, choice.exit) if choice not in aimed}
        assert by_node.keys() == kept.keys()
        for name, operator in by_node.items():
            assert operator.weight.shape == kept[name].weight.shape
            assert operator.padding == kept[name].padding
            assert not torch.allclose(operator.weight, kept[name].weight, atol=1e-6)


def test_a_summand_whose_other_summand_is_restored_aims_at_its_own_output(network):
    one, two = consumers_of(network, "act_1")
    assert (one.node, one.target) == ("one", "one")
    assert (two.node, two.target, two.other) == ("two", "two", None)


def test_what_reads_values_that_are_not_finite_stays(network, candidates, weights, calibration):
    """A dropped span may leave what the next layers have no finite value for."""
    broken = {
        choice: {name: replace(operator, bias=operator.bias * float("nan")) for name, operator in body.items()}
        for choice, body in weights.items()
    }
    found = refitted(network, candidates, broken, calibration)
    assert not any(found[choice] for choice, body in broken.items() if body)
    assert any(found[choice] for choice, body in broken.items() if not body)


def test_the_fold_that_is_left_out_does_not_show(network, candidates, weights, calibration, monkeypatch):
    monkeypatch.setattr(leaning, "KEPT_STRENGTHS", (0.1,))  # what that fold judges is then decided
    found = {}
    for fold in (0, 1):
        batches = [
            b.each(lambda t: 3 * t + 1) if f == fold else b
            for f, b in zip(calibration.folds, calibration.batches, strict=True)
        ]
        found[fold] = refitted(network, candidates, weights, replace(calibration, batches=tuple(batches)))
    wanted = refitted(network, candidates, weights, calibration)
    pairs = [(choice, name) for choice, by_node in wanted.items() for name in by_node]
    assert pairs
    assert all(same(wanted[choice][name], found[1][choice][name]) for choice, name in pairs)
    assert not any(same(wanted[choice][name], found[0][choice][name]) for choice, name in pairs)


def test_refits_for_several_folds_are_those_for_each_alone(network, candidates, calibration):
    weights, options = fit_candidates(network, candidates, calibration), {"seed": 0, "progress": silent}
    together = refit_consumers(network, candidates, weights, calibration, [2, 0], memory=FitMemory(3), **options)
    assert any(together.values())
    for fold in (0, 2):
        alone = refit_consumers(network, candidates, weights, calibration, [fold], memory=FitMemory(3), **options)
        for (choice, _), by_node in alone.items():
            assert by_node.keys() == together[choice, fold].keys()
            assert all(same(operator, together[choice, fold][name]) for name, operator in by_node.items())


def test_neither_other_candidates_nor_several_passes_show(network, candidates, weights, calibration, monkeypatch):
    monkeypatch.setattr("depthcomp.fitting.memory.PARTS", 1)
    calls, wanted = [], refitted(network, candidates, weights, calibration)
    several = refitted(network, candidates, weights, calibration, 0.15, lambda *call: calls.append(call))
    assert calls == [(calls[0][0], done, len(calls)) for done in range(1, len(calls) + 1)]
    assert len(calls) > len(calibration.batches)
    alone = refitted(network, candidates[3:4], weights, calibration)
    assert len(alone) == 1
    for found in (several, alone):
        for choice, by_node in found.items():
            assert by_node.keys() == wanted[choice].keys()
            assert all(same(operator, wanted[choice][name]) for name, operator in by_node.items())


def test_a_consumer_that_memory_has_no_room_for_stays(network, candidates, weights, calibration):
    found = refitted(
        network, candidates, weights, calibration, 0.06
    )  # 18 unknowns; a 3x3 kernel over 5 channels has 45
    names = {name for by_node in found.values() for name in by_node}
    assert "one" in names
    assert "two" not in names
