"""Half precision, bfloat16 and double: capture stays in them, merges are derived in float64 and rounded once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_nets import Chain, image, outputs, plan_of, randomise, relative_error

from depthcomp_errors import CaptureError, PlanError
from fx_passes import capture, linearize, merge, random_plan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_stays_in_it(dtype):
    torch.manual_seed(0)
    model, x = randomise(Chain()).to(dtype), image().to(dtype)
    gm = capture(model, x)
    with torch.no_grad():
        assert torch.equal(gm(x), model(x))
    assert {tensor.dtype for tensor in gm.state_dict().values() if tensor.is_floating_point()} == {dtype}
    plan = plan_of(("x", "act2", "merge", (5, 3)))
    merged = merge(linearize(gm, plan), plan)
    assert merged(x).dtype == dtype
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}


class ChangesKind(nn.Module):
    """Layers that capture writes in another way: joined arithmetic, a computed weight, linear layers on one pixel."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Conv2d(5, 5, 3, padding=1)
        self.weight, self.gamma = nn.Parameter(torch.randn(5, 5, 3, 3)), nn.Parameter(torch.rand(5, 1, 1))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.Hardswish(), nn.Linear(7, 3)
        )

    def forward(self, x):
        x = F.conv2d(F.relu(self.conv1((x - 0.3) / 0.7)) * self.gamma, self.weight / self.weight.norm(), padding=1)
        return self.head(F.relu(self.conv2(x) * 0.7 / 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_layers_that_change_kind_do_so_in_half_precision(dtype, seed):
    torch.manual_seed(seed)
    model, x = ChangesKind().to(dtype).train(), torch.randn(2, 3, 11, 13).to(dtype)
    gm = capture(model, x)
    assert model.training
    assert [name for name, tensor in gm.state_dict().items() if tensor.dtype != dtype] == []
    assert not any(isinstance(layer, nn.Linear) for layer in gm.modules())
    eps = torch.finfo(dtype).eps
    with torch.no_grad():
        assert relative_error(gm(x).double(), model.eval()(x).double()) < 8 * eps
    for plan_seed in range(3):
        plan = random_plan(gm, np.random.default_rng(plan_seed))
        linearized = linearize(gm, plan)
        merged = merge(linearized, plan)
        assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
        with torch.no_grad():
            assert relative_error(merged(x).double(), linearized(x).double()) < 16 * eps


def test_merged_weights_are_derived_in_double_precision_and_rounded_once():
    torch.manual_seed(0)
    gm = capture(nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 3)).half(), torch.randn(2, 3, 11, 13).half())
    plan = plan_of(("input_1", "_1", "merge", (5, 5)))
    linearized = linearize(gm, plan)
    (found,) = (p for name, p in merge(linearized, plan).named_parameters() if name.endswith("weight"))
    (wanted,) = (p for name, p in merge(linearized.double(), plan).named_parameters() if name.endswith("weight"))
    assert torch.equal(found, wanted.half())


class Wrong(nn.Module):
    """Computes by a thousandth more at each call."""

    def __init__(self):
        super().__init__()
        self.factor = 1.0

    def forward(self, x):
        self.factor += 1e-3
        return x * self.factor


def test_single_precision_is_not_judged_by_the_measure_of_half_precision():
    with pytest.raises(CaptureError, match=r"Wrong differs from the model by 0\.00"):
        capture(Wrong(), torch.ones(1, 3, 5, 5))


def deep(gain, dtype, depth=23):
    """Return the graph of many convolutions in a row, each of which multiplies what it reads by about `gain`."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(5, 5, 1) for _ in range(depth)]
    for conv in convs:
        conv.weight.data.copy_(gain * torch.linalg.qr(torch.randn(5, 5)).Q[..., None, None])
    layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
    x = image(5).to(dtype)
    return capture(nn.Sequential(*layers).to(dtype), x), x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_deep_plans_stay_finite_in_low_precision(dtype):
    gm, x = deep(1.0, dtype)
    plan = plan_of(("input_1", "_45", "merge", (1, 1)))
    merged = merge(linearize(gm, plan), plan)
    assert merged.get_submodule("merged__44").weight.dtype == dtype
    wanted = outputs(linearize(gm, plan).double(), x.double())[0]
    found = outputs(merged, x)[0].double()
    assert relative_error(found, wanted) < 20 * torch.finfo(dtype).eps


def test_a_plan_whose_weights_leave_the_range_of_the_type_is_refused():
    plan = plan_of(("input_1", "_45", "merge", (1, 1)))
    merge(linearize(deep(2.0, torch.float32)[0], plan), plan)
    with pytest.raises(PlanError, match=r"at 0 to 44 has weights up to \S+e\+06, and torch.float16 ends at 6.55e\+04"):
        merge(linearize(deep(2.0, torch.float16)[0], plan), plan)
