"""Layers whose forward cannot be traced stay layers, or are refused where they hold convolutions."""

import inspect

import pytest
import torch
from captured_checks import called, check
from torch import nn
from toy_nets import Chain

from depthcomp_errors import CaptureError
from fx_passes import capture, find_span
from fx_passes.channel_affine import ChannelAffine
from fx_passes.operators import image_shape

pytestmark = pytest.mark.whole


class Doubling(torch.autograd.Function):
    """Twice the input, by a function that torch.fx cannot look into."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Gate(nn.Module):
    """Reads a parameter, calls an autograd function and branches on values."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        x = Doubling.apply(x * self.scale)
        return x if x.sum() > 0 else -x


class Gated(nn.Module):
    """Convolutions around a gate that shares a parameter with the network."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5, 1, 1))
        self.before = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3))
        self.gate, self.after = Gate(self.scale), nn.Conv2d(5, 5, 3)

    def forward(self, x):
        return self.after(self.gate(self.before(x)) + self.scale)


def test_a_layer_that_cannot_be_traced_stays_a_layer():
    torch.manual_seed(0)
    gm = check(Gated(), torch.randn(2, 3, 11, 13))
    assert called(gm) == [nn.Conv2d, nn.ReLU, nn.Conv2d, Gate, ChannelAffine, nn.Conv2d]
    assert find_span(gm, "x", "before_2").choices
    gate = next(node for node in gm.graph.nodes if node.target == "gate")
    assert image_shape(gate) == (2, 5, 7, 9)


def test_a_layer_that_cannot_be_traced_stays_a_layer_inside_a_sequential():
    gated = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3), Gate(nn.Parameter(torch.ones(1))), nn.ReLU()), nn.ReLU())
    gm = check(gated, torch.randn(2, 3, 11, 13))
    assert called(gm) == [nn.Conv2d, Gate, nn.ReLU, nn.ReLU]


class Branching(Chain):
    """Branches on values between convolutions."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.conv1(x)


def test_a_part_with_convolutions_that_cannot_be_traced_is_refused():
    line = inspect.getsourcelines(Branching.forward)[1] + 1
    with pytest.raises(CaptureError, match=rf"Sequential cannot be traced at .*test_untraceable_layers\.py:{line}"):
        capture(nn.Sequential(Branching()), torch.ones(1, 3, 11, 13))
