"""Networks that users save with `torch.save`, alone or inside objects of their own, as libraries' checkpoints do."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import randomise

from fx_passes import capture, linearize, merge, random_plan

X = torch.randn(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))


class Grid(nn.Module):
    """A detector that keeps the positions of its cells for as long as their number stays the same."""

    shape = None

    def __init__(self):
        super().__init__()
        layers = [layer for _ in "abc" for layer in (nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())]
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), *layers)
        self.names = {0: "cat"}

    def forward(self, x, *args, **kwargs):
        y = self.body(x)
        if self.shape != y.shape:
            self.columns, self.shape = torch.arange(y.shape[3]) + 0.5, y.shape
        return {"raw": [y], "decoded": (y + self.columns).flatten(2)}


class Plain(Grid):
    """The same without positions, which proxies can follow."""

    def forward(self, x):
        y = self.body(x)
        return {"raw": [y], "decoded": y.flatten(2)}


def saved_and_loaded(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # our own bytes


@pytest.mark.parametrize("kind", [Grid, Plain])
def test_a_compressed_network_in_an_object_of_the_users_is_saved_and_loaded(kind):
    torch.manual_seed(0)
    gm = capture(randomise(kind()), X)
    plan = random_plan(gm, np.random.default_rng(0))
    assert len(plan)
    network = merge(linearize(gm, plan), plan)
    loaded = saved_and_loaded(nn.Sequential(network))
    assert loaded[0].names == {0: "cat"}
    wanted, found = network(X), loaded(X)
    assert torch.equal(found["decoded"], wanted["decoded"])
    assert torch.equal(found["raw"][0], wanted["raw"][0])
