"""Sensitivities predict what small changes of inner tensors really cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import DEFAULT_LOSS, divergence
from depthcomp.errors import DataError
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.sensitivity import Sensitivity
from fx_passes import capture

pytestmark = pytest.mark.whole

DRAWS = 1000


class Outputs(nn.Module):
    """Two convolutions, and an output of the kind that is asked for."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.act, self.second = nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 7, 3, stride=2)

    def forward(self, x):
        x = self.second(self.act(self.first(x)))
        if self.kind == "map":
            return x
        scores = x.mean((2, 3))
        if self.kind == "units":
            return (x * torch.tensor([100.0, 1, 1, 1, 1, 0.01, 0.01], dtype=x.dtype)[:, None, None]).flatten(2)
        if self.kind == "dict":
            return {"scores": scores, "map": 3 * x}
        if self.kind == "classes":
            return scores.argmax(1)
        if self.kind == "root":
            return torch.sqrt(scores - scores)
        return 4 * scores


def captured(kind):
    torch.manual_seed(0)
    return capture(Outputs(kind).double().eval(), images(1))


def images(count=2):
    return torch.randn(count, 3, 11, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sensitivity(gm, names=("first",), *, draws=DRAWS, seed=3, labels=None):
    generator = torch.Generator().manual_seed(seed)
    return Sensitivity(gm, images(), names, draws=draws, generator=generator, labels=labels)


def small_change(tail, name="first", size=0.03):
    value = tail.value(name)
    return size * torch.randn(value.shape, generator=torch.Generator().manual_seed(5)).to(value)


@pytest.mark.parametrize("kind", ["scores", "map", "dict", "units"])
@pytest.mark.parametrize("name", ["first", "act"])
def test_a_small_change_costs_what_curvature_predicts(kind, name):
    gm = captured(kind)
    tail = Tail(gm, images())
    value, change = tail.value(name), small_change(tail, name)
    true = divergence(tail.output, tail.rerun(name, value + change))
    assert sensitivity(gm, [name]).rise(name, value + change) == pytest.approx(true, rel=0.1)


class Pairs(nn.Module):
    """One convolution on two images, which a changed tensor holds in one batch."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Linear(5, 4)

    def forward(self, left, right):
        left, right = (self.act(self.first(x)).mean((2, 3)) for x in (left, right))
        return 4 * self.second(left - 2 * right)


def test_a_change_of_both_branches_costs_what_they_do_together():
    torch.manual_seed(0)
    pair = Inputs.of((images(), images().flip(0)))
    gm = capture(Pairs().double().eval(), pair[:1].tensors)
    tail, generator = Tail(gm, pair), torch.Generator().manual_seed(3)
    value, change = tail.value("first"), small_change(tail)
    true = divergence(tail.output, tail.rerun("first", value + change))
    found = Sensitivity(gm, pair, ["first"], draws=DRAWS, generator=generator).rise("first", value + change)
    assert len(value) == 4
    assert found == pytest.approx(true, rel=0.1)


def test_labels_add_the_first_order_term_of_the_task_loss():
    gm, labels = captured("scores"), torch.tensor([2, 6])
    tail = Tail(gm, images())
    change = small_change(tail)
    changed = tail.rerun("first", tail.value("first") + change)
    true = DEFAULT_LOSS.rise(tail.output, changed, images(), labels)
    assert sensitivity(gm, labels=labels).rise("first", tail.value("first") + change) == pytest.approx(true, rel=0.1)
    cross_entropy = F.cross_entropy(tail.output, labels)
    assert abs(true) < cross_entropy  # a change, not the loss itself


def test_the_recorded_tensors_are_those_of_a_plain_forward():
    gm = captured("dict")
    found, plain = sensitivity(gm, draws=1), Tail(gm, images())
    for name in ("first", "act", "second"):
        assert torch.equal(found.tail.value(name), plain.value(name))
        assert not found.tail.value(name).requires_grad
    assert torch.equal(found.tail.output["map"], plain.output["map"])
    assert all(parameter.grad is None for parameter in gm.parameters())


def test_equal_seeds_give_equal_estimates():
    gm = captured("scores")
    tail = Tail(gm, images())
    changed = tail.value("first") + small_change(tail)
    one, again, other = (sensitivity(gm, draws=3, seed=seed).rise("first", changed) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("kind", ["classes", "root"])
def test_without_a_finite_gradient_the_rise_is_nan(kind):
    found = sensitivity(captured(kind), draws=2)
    assert math.isnan(found.rise("first", 1.1 * found.tail.value("first")))


def test_a_frozen_network_has_gradients():
    gm = captured("scores")
    gm.requires_grad_(False)
    found = sensitivity(gm, draws=2)
    assert found.rise("first", 1.1 * found.tail.value("first")) > 0


def test_outputs_that_are_not_finite_are_refused():
    gm = captured("scores")
    gm.second.bias.data[0] = math.nan
    with pytest.raises(DataError, match="the network's own output on the calibration images is NaN or infinite"):
        sensitivity(gm, draws=1)
