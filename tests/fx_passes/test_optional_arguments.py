"""Arguments of a forward that the example leaves out keep their defaults, which may be branched on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class Optional(nn.Module):
    """Takes a mask, a size and a number of turns where they are given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, mask=None, out_size=None, turns: int = 2, *, features=False):
        for _ in range(turns):
            x = self.conv(x)
        if mask is not None:
            x = x * mask
        y = F.interpolate(x, size=x.shape[-2:] if out_size is None else out_size)
        return (x, y) if features else y


@pytest.mark.parametrize("inputs", [(X,), (X, torch.rand(2, 1, 9, 7))])
def test_what_the_example_leaves_out_has_its_default(inputs):
    torch.manual_seed(0)
    net = Optional().eval()
    gm = capture(net, inputs)
    assert torch.equal(gm(*inputs), net(*inputs))
    assert len(gm.graph.find_nodes(op="placeholder")) == len(inputs)


def test_sizes_stay_symbolic_around_a_default():
    gm = capture(Optional(), X)
    assert gm(X[:1, :, :5]).shape == (1, 3, 5, 7)
