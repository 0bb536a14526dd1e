"""Inputs by name: a dict of arguments gives a graph that takes these, in its order."""

import pytest
import torch
from torch import nn
from toy_nets import relative_error

from depthcomp_errors import CaptureError
from fx_passes import capture


class Masked(nn.Module):
    """Arguments as HuggingFace has them, one of them by keyword alone."""

    def __init__(self, *, checks):
        super().__init__()
        self.conv, self.checks = nn.Conv2d(3, 4, 3), checks

    def forward(self, pixel_values=None, labels=None, *, mask=None):
        x = self.conv(pixel_values)
        if self.checks:
            assert isinstance(x, torch.Tensor)  # which proxies are not, so that a run is recorded
        return {"features": x if mask is None else x * mask[:, None]}


def images():
    return torch.randn(2, 3, 6, 7), torch.rand(2, 4, 5) > 0.5


@pytest.mark.parametrize("checks", [False, True])
def test_a_dict_names_the_inputs(checks):
    model, (x, mask) = Masked(checks=checks).eval(), images()
    gm = capture(model, {"pixel_values": x, "mask": mask})
    assert [node.target for node in gm.graph.find_nodes(op="placeholder")] == ["pixel_values", "mask"]
    wanted = model(x, mask=mask)["features"]
    assert relative_error(gm(x, mask)["features"], wanted) < 1e-6
    assert relative_error(gm(mask=mask, pixel_values=x)["features"], wanted) < 1e-6


def test_a_name_that_the_forward_lacks_is_refused():
    with pytest.raises(CaptureError, match=r"do not fit Masked: its forward raised TypeError .*'image'"):
        capture(Masked(checks=False).eval(), {"image": images()[0]})
