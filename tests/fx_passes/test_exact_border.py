"""Exact borders: where a span begins with 1x1 convolutions, its merge equals the linear original at every pixel."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_nets import networks
from test_random_networks import GENEROUS, examples
from torch import nn
from toy_nets import (
    Branches,
    Chain,
    DepthwiseChain,
    Inverted,
    captured,
    convolutions,
    image,
    largest_error,
    outputs,
    plan_of,
)

from depthcomp_errors import PlanError
from fx_passes import capture, linearize, merge, random_plan
from fx_passes.operators import Role, role

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64


class Strided(nn.Module):
    """Biased 1x1 convolutions, one of them strided, before one whose asymmetric padding stands alone; a projection."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.act = nn.Conv2d(5, 7, 1, stride=2), nn.BatchNorm2d(7), nn.ReLU()
        self.two, self.pad, self.three = nn.Conv2d(7, 7, 1), nn.ZeroPad2d((0, 2, 1, 1)), nn.Conv2d(7, 11, 3, 2)
        self.short = nn.Conv2d(5, 11, 1, stride=4)

    def forward(self, x):
        return self.three(self.pad(self.two(self.act(self.norm(self.one(x)))))) + self.short(x)


EXACT = {
    "inverted": (Inverted, "add", (3, 3)),
    "branches": (Branches, "mix", (3, 3)),
    "strided": (Strided, "add", (5, 5)),
}


def exact(name, model=None):
    """Return the graph, the plan, and both forms with exact borders."""
    build, exit_, kernel = EXACT[name]
    gm = model or captured(build(), image(5, 12, 16))
    plan = plan_of(("x", exit_, "merge", kernel))
    linearized = linearize(gm, plan, exact_border=True)
    return gm, plan, linearized, merge(linearized, plan)


def without_activations(gm):
    """Return a copy of a graph with its activations as identity, and nothing else changed."""
    linear = copy.deepcopy(gm)
    for node in linear.graph.nodes:
        if role(gm, node) is Role.ACTIVATION:
            linear.set_submodule(str(node.target), nn.Identity())
    return linear


@pytest.mark.parametrize("size", [(12, 16), (13, 11)])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_merge_is_the_linear_network_up_to_its_border(name, size):
    gm, plan, linearized, merged = exact(name, captured(EXACT[name][0](), image(5, *size)))
    x = image(5, *size)
    wanted = outputs(without_activations(gm), x)
    assert largest_error(outputs(linearized, x), wanted) < SAME
    assert largest_error(outputs(merged, x), wanted) < SAME
    hoisted = linearize(gm, plan)
    assert largest_error(outputs(hoisted, x), wanted) > 1e-3  # what the mode is for


@pytest.mark.parametrize("name", sorted(EXACT))
def test_one_convolution_with_one_channel_more_is_left(name):
    _, _, _, merged = exact(name)
    (conv,) = convolutions(merged)
    assert (conv.in_channels, conv.groups) == (6, 1)
    assert conv.kernel_size == EXACT[name][2]


@pytest.mark.parametrize("name", sorted(EXACT))
def test_training_does_not_break_it(name):
    gm, plan, linearized, _ = exact(name)
    x = image(5, 12, 16)
    optimiser = torch.optim.SGD(linearized.train().parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        linearized(x).square().mean().backward()
        optimiser.step()
    linearized.eval()
    assert largest_error(outputs(linearized, x), outputs(linearize(gm, plan, exact_border=True), x)) > 1e-3
    assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < SAME


@pytest.mark.parametrize(
    ("model", "channels", "exit_", "kernel"),
    [(Chain, 3, "act3", (9, 7)), (DepthwiseChain, 5, "second", (5, 5))],
    ids=["first operator is 3x3", "grouped"],
)
def test_padding_moves_to_the_entry_where_a_constant_channel_does_not_help(model, channels, exit_, kernel):
    x = image(channels)
    gm, plan = captured(model(), x), plan_of(("x", exit_, "merge", kernel))
    assert str(linearize(gm, plan, exact_border=True).graph) == str(linearize(gm, plan).graph)


def test_nothing_is_carried_where_no_bias_is_missing():
    layers = nn.Conv2d(5, 7, 1, bias=False), nn.ReLU(), nn.Conv2d(7, 5, 3, padding=1)
    gm = captured(nn.Sequential(*layers), image(5))
    plan = plan_of(("input_1", "_2", "merge", (3, 3)))
    (conv,) = convolutions(merge(linearize(gm, plan, exact_border=True), plan))
    assert conv.in_channels == 5


@given(networks(), st.integers(0, 2**16))
@examples(40)
def test_any_plan_for_any_network_merges_exactly(drawn, seed):
    net, x = drawn
    gm = capture(net, x)
    plan = random_plan(gm, np.random.default_rng(seed), GENEROUS)
    linearized = linearize(gm, plan, exact_border=True)
    assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < SAME


def test_a_graph_that_pads_inside_is_not_merged():
    gm = without_activations(captured(Chain(), image()))
    with pytest.raises(PlanError, match=r"in linearized form \(tensors inside are padded\); merge needs the graph lin"):
        merge(gm, plan_of(("x", "act3", "merge", (9, 7))))
