"""Every activation has a price, and the operator that it is fused into is the right one."""

import pytest
from folded_network import network_of
from torch import nn

from depthcomp.latency.pricing import Pricing
from fx_passes import CapturedNetwork, SpanLimits, enumerate_spans
from fx_passes.operators import ACTIVATIONS

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_that_the_passes_know_has_a_price(activation):
    signature = Pricing(network_of(nn.Sequential(nn.Conv2d(3, 5, 3), activation()), 1, 3, 7, 7)).kept["_0"]
    assert signature.activation is not None
    assert not signature.residual


def test_a_subclass_of_an_activation_costs_what_its_parent_does():
    network = network_of(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), 1, 3, 7, 7)
    wanted = Pricing(network).kept["_0"]
    network.gm.set_submodule("1", type("Special", (nn.ReLU,), {})())
    assert Pricing(CapturedNetwork(network.gm)).kept["_0"] == wanted


class Gap(nn.Module):
    """Behind the first activation stands a skip's sum, and behind that another activation."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(n, 5, 3, padding=1) for n in (3, 5, 5))
        self.inner, self.outer = nn.ReLU6(), nn.Hardswish()

    def forward(self, x):
        x = self.stem(x)
        return self.outer(self.inner(self.two(self.inner(self.one(x)))) + x)


def test_a_convolution_without_its_activation_is_fused_with_what_follows_that():
    network = network_of(Gap(), 2, 3, 7, 9)
    candidates = Pricing(network).candidates(enumerate_spans(network, SpanLimits(kinds=("merge",))))
    by_end = {c.choice.end: c.signatures[0] for c in candidates if c.choice.exit == "inner_1" and not c.choice.pruned}
    assert (by_end["original"].activation, by_end["original"].residual) == ("relu6", False)
    assert (by_end["none"].activation, by_end["none"].residual) == ("hardswish", True)
