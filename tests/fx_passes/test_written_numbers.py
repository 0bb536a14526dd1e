"""Numbers, sizes and bounds as people compute them: with NumPy, and from buffers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.register_buffer("bounds", torch.tensor([1, 9]))
        self.scales = np.array([2.0, 2.0])

    def forward(self, x):
        return self.last(self.change(self.conv(x)))


class NumPyNumbers(Base):
    def change(self, x):
        x = F.pad(x, tuple(np.array([1, 1, 2, 2])))
        return x[:, :, np.int64(1) : np.int64(-1)] * np.float32(0.5)


class SizesByNumPy(Base):
    def change(self, x):
        size = np.array(x.shape[-2:]) * self.scales
        return F.interpolate(x, size=[int(n) for n in size])


class BoundsFromBuffers(Base):
    def change(self, x):
        low, high = self.bounds
        lists = self.bounds.tolist()
        return x[:, :, low:high] + x[:, :, lists[0] : int(self.bounds.numpy()[1])]


@pytest.mark.parametrize("kind", [NumPyNumbers, SizesByNumPy, BoundsFromBuffers])
def test_numbers_as_people_write_them(kind):
    net = kind().eval()
    gm = capture(net, X)
    assert torch.allclose(gm(X), net(X), atol=1e-6)
    assert {"conv", "last"} <= {node.target for node in gm.graph.find_nodes(op="call_module")}
