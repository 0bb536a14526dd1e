"""Layers that a forward calls on several tensors of one shape run once, on one batch, and keep one set of weights."""

import pytest
import torch
from torch import nn
from toy_nets import relative_error

from fx_passes import capture
from fx_passes.operators import called_module


class Trunk(nn.Module):
    """Two convolutions with a skip, one activation module for both, and a size that is read."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(5), nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        x = x + self.act(self.norm(self.second(x)))
        pooled = x.mean((2, 3)).view(x.size(0), -1)
        return torch.cat([pooled, 2 * pooled], 1)


class Siamese(nn.Module):
    """One trunk, and what a function makes of its outputs."""

    def __init__(self, join):
        super().__init__()
        self.trunk, self.head, self.join = Trunk(), nn.Linear(10, 2), join

    def forward(self, *images):
        return self.join(self.head, self.trunk, *images)


def inputs(count, *sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 3, size, size + 1, generator=generator) for size in sizes)


def convolutions(gm):
    nodes = gm.graph.find_nodes(op="call_module")
    return [called_module(gm, node) for node in nodes if isinstance(called_module(gm, node), nn.Conv2d)]


def pair(head, trunk, a, b):
    return head((trunk(a) - trunk(b)).abs())


def triplet(head, trunk, a, b, c):
    a, b, c = map(trunk, (a, b, c))
    return head((a - b).abs()), head((a - c).abs())


def inner_tensors(head, trunk, a, b):
    """The branches read each other halfway."""
    one, other = trunk.first(a), trunk.first(b)
    return trunk.second(one + other.mean()), trunk.second(other + one.mean())


@pytest.mark.parametrize(("join", "count"), [(pair, 2), (triplet, 3), (inner_tensors, 2)])
def test_each_layer_of_the_branches_is_called_once(join, count):
    model = Siamese(join).eval()
    gm = capture(model, inputs(1, *[6] * count))
    assert len(convolutions(gm)) == len({id(conv.weight) for conv in convolutions(gm)}) == 2
    several = inputs(5, *[6] * count, seed=1)
    wanted, found = model(*several), gm(*several)
    for one, other in zip(*((out,) if isinstance(out, torch.Tensor) else out for out in (wanted, found)), strict=True):
        assert relative_error(other, one) < 1e-5


def test_an_input_has_its_own_part_of_the_batch():
    model = Siamese(lambda head, trunk, a, b: trunk(a) + 0 * trunk(b)).eval()
    a, b = inputs(4, 6, 6)
    assert relative_error(capture(model, (a, b))(a, b), model.trunk(a)) < 1e-5


def mixing(head, trunk, a, b):
    """The largest value of a whole batch is no example's own."""
    return [each / each.amax() for each in map(trunk.first, (a, b))]


def one_behind_the_other(head, trunk, a, b):
    return trunk.second(trunk.second(trunk.first(a))) + trunk.first(b)


def two_sizes(head, trunk, a, b):
    return head(trunk(a)) + head(trunk(b[..., 1:]))


@pytest.mark.parametrize("join", [mixing, one_behind_the_other, two_sizes])
def test_what_cannot_run_as_one_batch_computes_the_same(join):
    model = Siamese(join).eval()
    several = inputs(3, 6, 6, seed=1)
    gm = capture(model, several)
    wanted, found = model(*several), gm(*several)
    for one, other in zip(*((out,) if isinstance(out, torch.Tensor) else out for out in (wanted, found)), strict=True):
        assert relative_error(other, one) < 1e-5


def test_gradients_of_all_branches_reach_the_one_weight():
    model = Siamese(pair).eval()
    images = inputs(2, 6, 6)
    gm = capture(model, images)
    model(*images).sum().backward()
    gm(*images).sum().backward()
    weight = convolutions(gm)[0].weight
    assert relative_error(weight.grad, model.trunk.first.weight.grad) < 1e-4


def test_the_users_names_stay():
    gm = capture(Siamese(pair).eval(), inputs(1, 6, 6))
    names = {node.target for node in gm.graph.find_nodes(op="call_module")}
    assert {"trunk.first", "trunk.second", "head"} <= names
