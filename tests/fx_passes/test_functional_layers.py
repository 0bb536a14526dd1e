"""Functional layers whose module depends on sizes, or that no module computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture, enumerate_spans

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, something functional, and what may follow it."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.kernel, self.norm = nn.Conv2d(3, 5, 3), nn.Parameter(torch.randn(5, 1, 2, 3)), nn.BatchNorm2d(5)
        self.function = function

    def normalised(self, x, training=False):
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training)

    def forward(self, x):
        return self.function(self, self.conv(x))


SIZED = {
    "size": lambda net, y: F.avg_pool2d(y, y.size()[2:]),
    "shape": lambda net, y: F.avg_pool2d(y, (y.shape[2], y.shape[3])),
    "number": lambda net, y: F.avg_pool2d(y, y.shape[-1]),
    "groups": lambda net, y: F.conv2d(y, net.kernel, stride=2, groups=y.shape[1]),
    "training": lambda net, y: net.normalised(y, training=True),
}


def captured(function):
    torch.manual_seed(0)
    net = Net(function).eval()
    net.norm.running_mean.normal_()
    gm = capture(net, X)
    with torch.no_grad():
        assert torch.equal(gm(X), net(X))
    return gm


@pytest.mark.parametrize("function", SIZED.values(), ids=SIZED)
def test_what_no_module_computes_stays_a_function(function):
    assert enumerate_spans(captured(function)) is not None


@pytest.mark.parametrize(
    ("reshape", "kind"),
    [(lambda y: y.mean((2, 3)), nn.BatchNorm1d), (lambda y: y.flatten(2), nn.BatchNorm1d),
     (lambda y: y, nn.BatchNorm2d), (lambda y: y[..., None], nn.BatchNorm3d)],
)  # fmt: skip
def test_the_module_of_a_functional_norm_suits_the_tensor_and_trains(reshape, kind):
    gm = captured(lambda net, y: net.normalised(reshape(y)))
    (norm,) = (module for module in gm.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    assert type(norm) is kind
    before = norm.running_mean.clone()
    gm.train()(X)
    assert not torch.equal(norm.running_mean, before)


def test_softsign_is_an_activation():
    gm = captured(lambda net, y: F.softsign(y))
    assert [type(module) for module in gm.children()] == [nn.Conv2d, nn.Softsign]


def kinds(gm):
    return [type(gm.get_submodule(node.target)) for node in gm.graph.nodes if node.op == "call_module"]


def test_a_functional_prelu_becomes_a_layer_with_the_models_slopes():
    class Sloped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)
            self.slopes = nn.Parameter(torch.linspace(-1, 1, 5))

        def forward(self, x):
            return self.two(F.prelu(self.one(x), self.slopes))

    net = Sloped().eval()
    gm = capture(net, X)
    assert kinds(gm) == [nn.Conv2d, nn.PReLU, nn.Conv2d]
    with torch.no_grad():
        assert torch.equal(gm(X), net(X))


@pytest.mark.parametrize("copy", [lambda y: y.clone(), lambda y: torch.clone(y), lambda y: y.contiguous()])
def test_a_copy_between_two_layers_does_not_part_them(copy):
    net = Net(lambda net, y: F.conv2d(copy(y), net.kernel, groups=5)).eval()
    gm = capture(net, X)
    assert kinds(gm) == [nn.Conv2d, nn.Conv2d]
    assert any(choice.kind == "merge" for span in enumerate_spans(gm) for choice in span.choices)


def test_a_copy_that_protects_a_tensor_or_suits_a_view_keeps_the_output():
    def protected(net, y):
        kept = y.clone()
        kept.mul_(2)
        return kept + y

    captured(protected)
    captured(lambda net, y: y.transpose(2, 3).contiguous().view(y.shape[0], -1))
