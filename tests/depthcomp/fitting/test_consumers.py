"""Readers of a change, refitted for one choice alone."""

from dataclasses import replace

import pytest
import torch
from depthcomp.fitting.compensation import readers_of
from depthcomp.fitting.readers import refit_readers
from two_readers import TwoReaders

from depthcomp.data.calibration import cross_validated
from depthcomp.fitting import readers
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.memory import FitMemory
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import OFFERED
from depthcomp.progress import silent
from fx_passes import capture, enumerate_spans


def images(count=12, seed=1):
    return torch.randn(count, 3, 11, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return capture(TwoReaders().double().eval(), images(1))


@pytest.fixture(scope="module")
def calibration():
    return cross_validated(images(), seed=0)


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, OFFERED))


@pytest.fixture(scope="module")
def operators(network, candidates, calibration):
    return {choice: by_fold[1] for choice, by_fold in fit_candidates(network, candidates, calibration).items()}


def refitted(network, candidates, operators, calibration, mib=64.0, progress=silent):
    return refit_readers(
        network, candidates, operators, calibration, 1, seed=0, memory=FitMemory(3, mib), progress=progress
    )


def same(one, other):
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_every_reader_is_refitted_and_keeps_its_shape(network, candidates, operators, calibration):
    found = refitted(network, candidates, operators, calibration)
    assert found.keys() == operators.keys()
    exits = {choice.exit for choice in found}
    assert max(len(readers_of(network, exit_)) for exit_ in exits) == 2
    aimed = {c.choice for c in candidates if c.choice.kind == "fit" and c.span.core == c.span.exit}
    assert aimed
    assert not any(found[choice] for choice in aimed)
    for choice, by_node in found.items():
        places = {place.core: place.operator for place in readers_of(network, choice.exit) if choice not in aimed}
        assert by_node.keys() == places.keys()
        for name, operator in by_node.items():
            assert operator.weight.shape == places[name].weight.shape
            assert operator.padding == places[name].padding
            assert not torch.allclose(operator.weight, places[name].weight, atol=1e-6)


def test_a_summand_whose_other_summand_is_restored_aims_at_its_own_output(network):
    one, two = readers_of(network, "act_1")
    assert (one.core, one.target) == ("one", "one")
    assert (two.core, two.target, two.other) == ("two", "two", None)


def test_what_reads_values_that_are_not_finite_stays(network, candidates, operators, calibration):
    """A dropped span may leave what the next layers have no finite value for."""
    broken = {
        choice: None if operator is None else replace(operator, bias=operator.bias * float("nan"))
        for choice, operator in operators.items()
    }
    found = refitted(network, candidates, broken, calibration)
    assert not any(found[choice] for choice, operator in broken.items() if operator is not None)
    assert any(found[choice] for choice, operator in broken.items() if operator is None)


def test_the_fold_that_is_left_out_does_not_show(network, candidates, operators, calibration, monkeypatch):
    monkeypatch.setattr(readers, "STRENGTHS", (0.1,))  # what that fold judges is then decided
    found = {}
    for fold in (0, 1):
        batches = [3 * b + 1 if f == fold else b for f, b in zip(calibration.folds, calibration.batches, strict=True)]
        found[fold] = refitted(network, candidates, operators, replace(calibration, batches=tuple(batches)))
    wanted = refitted(network, candidates, operators, calibration)
    pairs = [(choice, name) for choice, by_node in wanted.items() for name in by_node]
    assert pairs
    assert all(same(wanted[choice][name], found[1][choice][name]) for choice, name in pairs)
    assert not any(same(wanted[choice][name], found[0][choice][name]) for choice, name in pairs)


def test_neither_other_candidates_nor_several_passes_show(network, candidates, operators, calibration, monkeypatch):
    monkeypatch.setattr("depthcomp.fitting.memory.PARTS", 1)
    calls, wanted = [], refitted(network, candidates, operators, calibration)
    several = refitted(network, candidates, operators, calibration, 0.15, lambda *call: calls.append(call))
    assert calls == [(calls[0][0], done, len(calls)) for done in range(1, len(calls) + 1)]
    assert len(calls) > len(calibration.batches)
    alone = refitted(network, candidates[3:4], operators, calibration)
    assert len(alone) == 1
    for found in (several, alone):
        for choice, by_node in found.items():
            assert by_node.keys() == wanted[choice].keys()
            assert all(same(operator, wanted[choice][name]) for name, operator in by_node.items())


def test_a_reader_that_memory_has_no_room_for_stays(network, candidates, operators, calibration):
    found = refitted(
        network, candidates, operators, calibration, 0.06
    )  # 18 unknowns; a 3x3 kernel over 5 channels has 45
    names = {name for by_node in found.values() for name in by_node}
    assert "one" in names
    assert "two" not in names
