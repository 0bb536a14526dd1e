"""Activations written out are recognised by their values, and become the layers that compute them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture, enumerate_spans

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class SwishFunction(torch.autograd.Function):
    """As efficientnet_pytorch writes it, to save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))))


class MemoryEfficientSwish(nn.Module):
    def forward(self, x):
        return SwishFunction.apply(x)


class Written(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)
        self.register_buffer("three", torch.tensor(3.0))
        if isinstance(function, nn.Module):
            self.act = function
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


def gelu_by_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


FORMS = {
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), nn.SiLU()),
    "x.mul(x.sigmoid())": (lambda x: x.mul(x.sigmoid()), nn.SiLU()),
    "x / (1 + exp(-x))": (lambda x: x / (1 + torch.exp(-x)), nn.SiLU()),
    "autograd function": (MemoryEfficientSwish(), nn.SiLU()),
    "x * hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), nn.Hardswish()),
    "x * relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, nn.Hardswish()),
    "x * tanh(softplus(x))": (lambda x: x * torch.tanh(F.softplus(x)), nn.Mish()),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), nn.ReLU6()),
    "clamp(min=0)": (lambda x: x.clamp(min=0), nn.ReLU()),
    "threshold": (nn.Threshold(0.0, 0.0), nn.ReLU()),
    "max(x, 0)": (lambda x: (x + x.abs()) / 2, nn.ReLU()),
    "maximum(x, 0.1 x)": (lambda x: torch.maximum(x, 0.1 * x), nn.LeakyReLU(0.1)),
    "where": (lambda x: torch.where(x > 0, x, 0.2 * x), nn.LeakyReLU(0.2)),
    "clamp(-1, 2)": (lambda x: torch.clamp(x, -1, 2), nn.Hardtanh(-1.0, 2.0)),
    "gelu by tanh": (gelu_by_tanh, nn.GELU(approximate="tanh")),
    "gelu by erf": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), nn.GELU()),
}


def layers(gm):
    return [gm.get_submodule(node.target) for node in gm.graph.find_nodes(op="call_module")]


@pytest.mark.parametrize("form", FORMS)
def test_written_activations_become_layers(form):
    function, wanted = FORMS[form]
    net = Written(function).eval()
    gm = capture(net, X)
    assert torch.allclose(gm(X), net(X), atol=1e-6)
    _, found, _ = layers(gm)
    assert type(found) is type(wanted)
    assert repr(found) == repr(wanted)
    assert any(choice.kind == "merge" for span in enumerate_spans(gm) for choice in span.choices)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.702 * x),  # no layer computes it
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),  # a gate
        lambda x: x + torch.sigmoid(x.flip(1)),
        lambda x: x * x,
        nn.Softmax(1),
        nn.MaxPool2d(1),
    ],
)
def test_what_is_no_activation_stays(function):
    net = Written(function).eval()
    gm = capture(net, X)
    assert torch.allclose(gm(X), net(X), atol=1e-6)
    assert not {nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Hardtanh} & set(map(type, layers(gm)))


def test_a_value_that_is_read_elsewhere_stays():
    class Twice(Written):
        def forward(self, x):
            x = self.first(x)
            gate = torch.sigmoid(x)
            return self.second(x * gate) + gate.mean()

    net = Twice(None).eval()
    gm = capture(net, X)
    assert torch.allclose(gm(X), net(X), atol=1e-6)
    assert nn.SiLU not in map(type, layers(gm))
