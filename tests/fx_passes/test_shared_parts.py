"""Modules that are called twice and tensors that several layers hold become each call's own."""

import torch
import torch.nn.functional as F
from torch import nn
from toy_nets import relative_error

from fx_passes import capture
from fx_passes.normalise.modules import cloned_layers


def test_shared_modules_are_cloned_with_equal_weights():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model, x = nn.Sequential(conv, nn.ReLU(), conv).eval(), torch.randn(2, 3, 7, 5)
    gm = capture(model, x)
    assert relative_error(gm(x), model(x)) < 1e-6
    convs = [module for module in gm.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 2
    assert convs[0].weight.data_ptr() != convs[1].weight.data_ptr()
    assert torch.equal(convs[0].weight, convs[1].weight)
    assert cloned_layers(gm) == ["0"]


class Tied(nn.Module):
    """Two layers with one weight, and two functional ones that read one weight and a part of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x):
        x = self.second(self.first(x).relu())
        return F.conv2d(F.conv2d(x, self.weight), self.weight[:2])


def test_tied_weights_become_equal_ones_of_their_own():
    model, x = Tied().eval(), torch.randn(1, 4, 6, 6)
    gm = capture(model, x)
    convolutions = [module for module in gm.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4
    assert torch.equal(convolutions[0].weight, convolutions[1].weight)
    with torch.no_grad():
        before = [conv.weight.clone() for conv in convolutions]
        for conv in convolutions[::2]:
            conv.weight.mul_(2)
    assert [bool(torch.equal(c.weight, b)) for c, b in zip(convolutions, before, strict=True)] == [False, True] * 2
    assert model.first.weight is model.second.weight
