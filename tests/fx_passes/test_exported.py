"""Modules of torch.export have the spans of the networks that they were exported from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fx_passes import capture, enumerate_spans
from fx_passes.exported import plain

X = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """Layers and functions whose aten operators take their arguments in another order, or by other names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU6(inplace=True),
            nn.Conv2d(6, 6, 3, padding="same"), nn.SiLU(inplace=True), nn.GroupNorm(2, 6), nn.Dropout(0.1),
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x):
        y = self.body(x)
        y = y + F.hardswish(y) * 0.5 - y / 3
        y = torch.cat([y[:, 1:3], y[:, -4:], y[..., -2:, :].mean(2, keepdim=True).expand_as(y)[:, :2]], 1)[:, :6]
        z = F.interpolate(F.pad(y, (1, 1)), scale_factor=2, mode="bilinear") + F.interpolate(y, size=(18, 18))
        a, b = F.gelu(z).chunk(2, 1)
        z = F.max_pool2d(torch.cat([a, b**2], 1), 2)
        return self.head(self.norm(F.adaptive_avg_pool2d(z, 1).flatten(1))).softmax(1)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_modules_have_the_spans_of_their_networks(strict):
    net = Written().eval()
    exported = torch.export.export(net, (X,), strict=strict).module()
    gm, original = capture(exported, X), capture(net, X)
    torch.testing.assert_close(gm(X), net(X))
    assert [len(span.choices) for span in enumerate_spans(gm)] == [len(s.choices) for s in enumerate_spans(original)]
    assert {"body_0.weight", "head_1.weight"} <= {name for name, _ in gm.named_parameters()}
    assert not any("aten" in str(node.target) for node in gm.graph.nodes)


def test_other_modules_stay_as_they_are():
    net = torch.fx.symbolic_trace(Written())
    assert plain(net) is net
