"""Weights that a forward computes from the model's own tensors are computed once; shared tables stay shared."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from toy_nets import image, outputs, relative_error

from fx_passes import capture, enumerate_spans, free_merges, linearize, merge
from fx_passes.plan import Plan

pytestmark = pytest.mark.whole


class Standardised(nn.Conv2d):
    """A weight-standardised convolution."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = (self.weight - flat.mean(1).view(-1, 1, 1, 1)) / flat.std(1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Fixed(nn.Module):
    """A blur whose kernel is computed from a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("taps", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x):
        kernel = torch.outer(self.taps, self.taps) / 16
        return F.conv2d(x, kernel.expand(3, 1, 3, 3), padding=1, groups=3)


def test_a_standardised_convolution_becomes_a_plain_one_that_trains():
    torch.manual_seed(0)
    net, x = nn.Sequential(Standardised(3, 5, 3), nn.ReLU(), Standardised(5, 5, 3)).double(), image()
    gm = capture(net, x)
    assert [type(m) for m in gm.modules() if isinstance(m, nn.Conv2d)] == [nn.Conv2d, nn.Conv2d]
    assert not gm.graph.find_nodes(op="get_attr")
    assert relative_error(outputs(gm, x)[0], net(x)) < 1e-12
    gm.train()(x).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in gm.parameters())
    merge_all = next(c for s in enumerate_spans(gm) for c in s.choices if c.kind == "merge")
    plan = Plan.of([merge_all])
    linearized = linearize(gm, plan).eval()
    assert relative_error(outputs(merge(linearized, plan), x)[0], outputs(linearized, x)[0]) < 1e-12


def test_a_kernel_made_of_a_buffer_is_not_trained():
    gm = capture(Fixed(), image().float())
    (conv,) = (m for m in gm.modules() if isinstance(m, nn.Conv2d))
    assert not conv.weight.requires_grad
    assert conv.weight[0, 0, 1, 1] == 0.25


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_weight_stays_frozen(frozen):
    net = Standardised(3, 5, 3)
    net.weight.requires_grad_(not frozen)
    gm = capture(nn.Sequential(net), image().float())
    (conv,) = (m for m in gm.modules() if isinstance(m, nn.Conv2d))
    assert conv.weight.requires_grad != frozen


class Mixed(nn.Module):
    """A convolution and a skip, mixed in a proportion that is learned."""

    def __init__(self):
        super().__init__()
        self.conv, self.share = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(torch.randn(()))

    def forward(self, x):
        share = torch.sigmoid(self.share)
        return self.conv(x) * share + x * (1 - share)


def test_a_factor_that_an_activation_computes_is_a_constant_like_any_other():
    torch.manual_seed(0)
    net, x = Mixed().double(), image()
    gm = capture(net, x)
    assert [choice.kind for choice in free_merges(gm)] == ["merge"]
    merged = merge(linearize(gm, free_merges(gm)), free_merges(gm))
    assert relative_error(outputs(merged, x)[0], net(x)) < 1e-12


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_convolution_becomes_a_plain_one(normalise):
    torch.manual_seed(0)
    net, x = nn.Sequential(normalise(nn.Conv2d(3, 5, 3)), nn.Conv2d(5, 5, 3)).double().eval(), image()
    gm = capture(net, x)
    assert [type(layer) for layer in gm.children()] == [nn.Conv2d, nn.Conv2d]
    assert relative_error(outputs(gm, x)[0], net(x)) < 1e-12
    assert all(parameter.requires_grad for parameter in gm.parameters())
    assert parametrize.is_parametrized(net[0])  # the model itself is not changed


def test_a_model_that_cannot_be_copied_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    net.computed = 2 * net[0].weight  # torch copies no tensor that remembers how it was computed
    with pytest.raises(ValueError, match=r"Sequential cannot be copied \(RuntimeError: .*remove_weight_norm"):
        capture(net, image().float())


class Biased(nn.Module):
    """Two sums that look a table up, as relative position biases do."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("index", torch.randint(4, (11, 13)))

    def forward(self, x):
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        return torch.softmax(x + bias, 1) + bias


def test_a_table_that_is_looked_up_stays_one_parameter():
    gm = capture(Biased(), torch.randn(2, 5, 11, 13))
    assert [name for name, _ in gm.named_parameters()] == ["table"]


class Drawn(nn.Module):
    """A convolution whose weight is drawn anew each time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight * torch.rand_like(self.weight))


def test_a_weight_that_is_drawn_is_refused():
    with pytest.raises(ValueError, match=r"Drawn differs from the model.*draws random numbers"):
        capture(Drawn(), image().float())


@pytest.mark.parametrize("name", ["nf_resnet26", "eca_nfnet_l0"])
def test_timm_networks_of_standardised_convolutions_offer_merges(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    gm = capture(model, torch.randn(1, 3, 64, 64))
    assert F.conv2d not in [node.target for node in gm.graph.nodes]
    kinds = {choice.kind for span in enumerate_spans(gm) for choice in span.choices}
    assert "merge" in kinds
