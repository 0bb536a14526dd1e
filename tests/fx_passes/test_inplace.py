"""What a forward overwrites: the graph computes the same without overwriting anything, or capture refuses."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from toy_nets import relative_error

from depthcomp_errors import CaptureError
from fx_passes import capture, free_merges, linearize, merge
from fx_passes.normalise.inplace import DropInplace

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class ReadThenOverwritten(nn.Module):
    """A tensor that a convolution reads before it is overwritten; the convolution is merged with the next."""

    def __init__(self, overwrite):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.Conv2d(5, 5, 1)
        self.overwrite = overwrite

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        self.overwrite(x)
        return self.c(y) + x


OVERWRITES = {
    "clamp_": lambda x: x.clamp_(min=0), "neg_": lambda x: x.neg_(), "mul_": lambda x: x.mul_(torch.sigmoid(x)),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 0.3), "torch.clamp_": lambda x: torch.clamp_(x, 0),
    "elu_": F.elu_, "relu_": F.relu_, "sigmoid_": torch.sigmoid_, "threshold": lambda x: F.threshold(x, 0.1, 2, True),
    "rrelu": lambda x: F.rrelu(x, inplace=True), "__imul__": lambda x: x.__imul__(3), "unused": lambda x: x.sub_(1),
    "index": lambda x: x.__setitem__((slice(None), 0), 0),
    "module": nn.LeakyReLU(inplace=True),
}  # fmt: skip


@pytest.mark.parametrize("overwrite", OVERWRITES.values(), ids=OVERWRITES)
def test_merges_around_what_is_overwritten_are_exact(overwrite):
    torch.manual_seed(0)
    net = ReadThenOverwritten(overwrite).eval()
    gm = capture(net, X)
    plan = free_merges(gm)
    assert len(plan.choices) == 1
    with torch.no_grad():
        wanted = net(X)
        assert relative_error(gm(X), wanted) < 1e-6
        assert relative_error(merge(linearize(gm, plan), plan)(X), wanted) < 1e-5


@pytest.mark.parametrize("overwrite", [lambda x: x.copy_(x * 2), nn.init.ones_])
def test_an_overwriting_without_a_form_that_makes_a_new_tensor_is_refused(overwrite):
    with pytest.raises(CaptureError, match=r"\w+ in the forward overwrites its input by \w+ while other .* read a;"):
        capture(ReadThenOverwritten(overwrite), X)


def test_a_tensor_that_nobody_else_reads_may_be_filled():
    net = OnlyFilled().eval()
    assert torch.equal(capture(net, X)(X), net(X))


class OnlyFilled(nn.Module):
    """Fills a fresh tensor."""

    def forward(self, x):
        return x + torch.empty_like(x).fill_(3)


@pytest.mark.parametrize(("inplace", "twin"), [(operator.iadd, operator.add), (operator.ipow, operator.pow)])
def test_operators_in_graphs_made_by_hand(inplace, twin):
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(inplace, (x, 2))
    graph.output((x, y))
    gm = fx.GraphModule(nn.Module(), graph)
    assert DropInplace()(gm).modified
    assert (y.target, graph.output_node().args[0]) == (twin, (y, y))


class Renamed(nn.Module):
    """Overwrites a tensor under the other name that an identity gave it."""

    def __init__(self):
        super().__init__()
        self.conv, self.same = nn.Conv2d(3, 5, 3), nn.Identity()

    def forward(self, x):
        x = self.conv(x)
        self.same(x).mul_(2)
        return x


def test_an_identity_returns_the_tensor_itself():
    torch.manual_seed(0)
    net = Renamed().eval()
    assert torch.equal(capture(net, X)(X), net(X))
