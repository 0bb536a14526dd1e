"""Which choices are scored: all that can enter the frontier, and few others."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from branched_network import Branched, images

from depthcomp.fitting.consumers import restores_its_exit
from depthcomp.importance import contenders
from depthcomp.importance.contenders import Contenders, on_first_layers
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from dp_solver import frontier
from fx_passes import CapturedNetwork, SpanChoice, capture, enumerate_spans


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CapturedNetwork(capture(Branched().double().eval(), images(1)))


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, DEFAULT_LIMITS))


def price(signature):
    """Nearly in proportion to the taps of the kernel."""
    return 0.1 + math.prod(signature.kernel) * signature.in_channels


@pytest.fixture(scope="module")
def on_frontier(network, candidates):
    pricing = Pricing(network)

    def of(losses):
        found = frontier(pricing.problem(network.tree, candidates, losses, price))
        return {key for k in range(len(found)) for key in found.plan(k) if isinstance(key, SpanChoice)}

    return of


def losses_of(candidates, seed, least_share):
    """Random losses; a larger kernel over a span loses at least this share of what the next smaller one loses."""
    generator, losses = np.random.default_rng(seed), {}
    smaller = contenders._smaller(candidates)
    for candidate in candidates:  # the smallest kernels come first
        known = [losses[other] for other in smaller.get(candidate.choice, [])]
        factor = generator.uniform(least_share, 1.2)
        losses[candidate.choice] = factor * min(known, default=generator.lognormal(-1, 1))
    return losses


def scored(candidates, on_frontier, losses, refitted=None):
    """Return the losses that are asked for, and the number of rounds; with refits, those that are asked for."""
    refitted, found, count = refitted or losses, {}, 0
    bare_before = set()
    for part in Contenders(candidates, on_frontier).rounds(found):
        wanted = {candidate.choice for candidate in part.candidates}
        assert bare_before >= found.keys() & wanted  # none is scored twice in the same way
        assert part.bare.isdisjoint(found.keys() & wanted)
        found |= {choice: losses[choice] if choice in part.bare else refitted[choice] for choice in wanted}
        bare_before, count = part.bare, count + 1
    return found, count


@pytest.fixture
def all_wait(monkeypatch):
    monkeypatch.setattr(contenders, "CHEAP", 0)


@pytest.mark.usefixtures("all_wait")
@pytest.mark.parametrize("seed", range(12))
def test_the_frontier_of_the_scored_is_that_of_all(candidates, on_frontier, seed):
    """Where a larger kernel keeps the share of the loss that is assumed."""
    losses = losses_of(candidates, seed, contenders.LEAST_SHARE)
    found, rounds = scored(candidates, on_frontier, losses)
    assert on_frontier(losses) == on_frontier(found)
    assert len(found) < len(candidates)
    assert rounds > 1


@pytest.mark.usefixtures("all_wait")
def test_without_a_solver_all_are_scored_at_once(candidates):
    losses = losses_of(candidates, 0, 0.5)
    assert scored(candidates, None, losses) == (losses, 1)


def test_cheap_fits_do_not_wait(candidates, on_frontier):
    losses = losses_of(candidates, 0, 0.5)
    assert max(c.slots[0].operator.weight[0].numel() for c in candidates if c.slots) < contenders.CHEAP
    assert scored(candidates, on_frontier, losses)[0] == losses


@pytest.mark.usefixtures("all_wait")
@pytest.mark.parametrize("seed", range(12))
def test_consumers_are_refitted_behind_all_fits_that_may_pay(candidates, on_frontier, seed):
    """Where a refit leaves the share of the loss that is assumed."""
    bare, generator = losses_of(candidates, seed, contenders.LEAST_SHARE), np.random.default_rng(seed)
    refitted = {choice: loss * generator.uniform(contenders.REFITTED_SHARE, 1.0) for choice, loss in bare.items()}
    for candidate in candidates:
        if restores_its_exit(candidate):
            refitted[candidate.choice] = bare[candidate.choice]
    found, _ = scored(candidates, on_frontier, bare, refitted)
    assert on_frontier(found) == on_frontier({choice: refitted[choice] for choice in found})
    assert any(found[choice] > refitted[choice] for choice in found)  # some fits do without


@pytest.mark.usefixtures("all_wait")
def test_drops_and_merges_are_refitted_at_once(candidates, on_frontier):
    first = next(Contenders(candidates, on_frontier).rounds({}))
    kinds = {candidate.choice.kind for candidate in first.candidates if candidate.choice not in first.bare}
    assert {"drop", "merge"} <= kinds
    assert {choice.kind for choice in first.bare} == {"fit", "narrow"}


@pytest.mark.usefixtures("all_wait")
def test_an_unknown_loss_bounds_nothing(candidates, on_frontier):
    """A larger kernel than one without a loss may be as good as it likes."""
    losses = losses_of(candidates, 0, 0.5)
    smaller = contenders._smaller(candidates)
    blind = {choice: math.nan if choice not in smaller else loss for choice, loss in losses.items()}
    found, _ = scored(candidates, on_frontier, blind)
    assert len(found) > len(scored(candidates, on_frontier, losses)[0])


def test_smaller_kernels_have_the_same_span_and_end(candidates):
    fits = [candidate.choice for candidate in candidates if candidate.choice.kind == "fit"]
    wanted = {
        one: {
            other for other in fits if other != one and replace(other, kernel=one.kernel) == one and fits_in(other, one)
        }
        for one in fits
    }
    found = {one: set(several) for one, several in contenders._smaller(candidates).items()}
    assert found == {one: several for one, several in wanted.items() if several}
    assert len(found) > 5


def fits_in(one, other):
    return all(a <= b for a, b in zip(one.kernel, other.kernel, strict=True))


def test_a_second_layer_is_what_the_frontier_would_be_without_the_first():
    """On made-up losses, where the frontier is the least of them."""

    def least(losses):
        return {min(losses, key=losses.__getitem__)}

    losses = dict(zip("dcba", itertools.count(), strict=False))
    assert on_first_layers(least, losses, losses.keys()) == {"d", "c"}
    assert on_first_layers(least, losses, {"c", "b"}) == set()  # the first layer has none of them
    assert on_first_layers(least, losses, {"d", "b"}) == {"d"}
