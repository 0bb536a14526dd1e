"""ONNX export: the same function, in whatever precision, or an error and no file."""

import copy
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
from torch import nn

from depthcomp.errors import ArtifactError
from depthcomp.export import onnx_model
from fx_passes import Merge, Plan, capture, linearize, merge, random_plan
from fx_passes.channel_affine import ChannelAffine

pytestmark = pytest.mark.whole


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    ).eval()


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return {"sum": x + 2 * y, "pair": (x, None)}


@dataclass
class Masks:
    scores: torch.Tensor
    classes: torch.Tensor
    stride: int = 4


class Segmenter(nn.Module):
    """Returns constants, integers, an object of its own class, and one tensor twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        x = self.conv(x)
        return {"masks": Masks(x, x.argmax(1)), "names": ("sky", None, 1.5), "sure": x > 0, "again": x}


class IgnoresOne(nn.Module):
    def forward(self, x, y):
        return 2 * x


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


def vgg16_bn():
    """VGG with one linear layer in place of its three: those hold 90 % of the weights and nothing to merge."""
    model = torchvision.models.vgg16_bn(init_weights=False)
    model.classifier = nn.Linear(512 * 7 * 7, 7)
    return model


def with_random_norms(model):
    """Give every norm statistics and an affine map that are no identity."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.5, 0.5)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("create", "size"),
    [
        (lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.5), (37, 41)),
        (lambda: torchvision.models.resnet18(num_classes=7), (37, 41)),
        (vgg16_bn, (67, 101)),
        (lambda: timm.create_model("efficientnet_lite0", num_classes=7), (37, 41)),
        (lambda: timm.create_model("mobilenetv2_050", num_classes=7), (37, 41)),
    ],
    ids=["mobilenet_v2", "resnet18", "vgg16_bn", "efficientnet_lite0", "mobilenetv2_050"],
)
def test_a_merged_network_is_written_and_agrees_with_torch(create, size, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    gm = capture(with_random_norms(create()), x)
    plans = (random_plan(gm, np.random.default_rng(seed)) for seed in range(50))
    plan = next(plan for plan in plans if {"merge", "narrow"} <= {choice.kind for choice in plan})
    path = onnx_model.export_onnx(merge(linearize(gm, plan), plan), (x,), tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 3, *size]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_the_constant_channel_of_an_exact_border_is_written(tmp_path):
    x = torch.randn(2, 3, 11, 13)
    layers = nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 3, padding=1)
    gm = capture(nn.Sequential(*layers), x)
    plan = Plan((Merge("input_1", "_2", (3, 3)),))
    path = onnx_model.export_onnx(merge(linearize(gm, plan, exact_border=True), plan), (x,), tmp_path / "model.onnx")
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Pad", "Conv"]


class Scaled(nn.Module):
    """Arithmetic per channel that is left alone, between what no convolution takes up."""

    def __init__(self):
        super().__init__()
        self.gamma, self.pool = nn.Parameter(torch.randn(5, 1, 1)), nn.MaxPool2d(2)
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.pool(self.pool(self.conv((x - 0.5) / 0.2)) * self.gamma + 1) * 0.5


def test_arithmetic_per_channel_is_exported(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 17, 19)
    gm = capture(Scaled(), x)
    assert [type(layer) for layer in gm.children()].count(ChannelAffine) == 3
    graph = onnx.load(onnx_model.export_onnx(gm, (x,), tmp_path / "m.onnx")).graph  # it compares the outputs
    assert sorted(node.op_type for node in graph.node) == ["Add", "Add", "Conv", "MaxPool", "MaxPool", *["Mul"] * 3]


@pytest.mark.parametrize(
    ("dtype", "onnx_type"),
    [
        (torch.float16, onnx.TensorProto.FLOAT16),
        (torch.float32, onnx.TensorProto.FLOAT),
        (torch.float64, onnx.TensorProto.DOUBLE),
    ],
)
def test_a_network_is_exported_in_the_precision_that_it_is_in(dtype, onnx_type, tmp_path):
    path = onnx_model.export_onnx(small_net().to(dtype), (torch.randn(1, 3, 7, 9, dtype=dtype),), tmp_path / "m")
    graph = onnx.load(path).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx_type
    assert graph.output[0].type.tensor_type.elem_type == onnx_type


def test_bfloat16_is_refused_with_a_way_out(tmp_path):
    x = torch.randn(1, 3, 7, 9, dtype=torch.bfloat16)
    with pytest.raises(ArtifactError, match="export it in float32 or float16"):
        onnx_model.export_onnx(small_net().bfloat16(), (x,), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [TwoInputs(), IgnoresOne()])
def test_one_tensor_given_for_two_inputs_stays_two_inputs(model, tmp_path):
    x = torch.randn(2, 3)
    path = onnx_model.export_onnx(model, (x, x), tmp_path / "m.onnx")
    assert len(onnx.load(path).graph.input) == 2


def test_an_exported_network_returns_the_tensors_alone(tmp_path):
    x = torch.randn(1, 3, 9, 7)
    gm = capture(Segmenter(), x)
    model = onnx.load(onnx_model.export_onnx(gm, (x,), tmp_path / "model.onnx"))
    assert len(model.graph.output) == 4
    assert isinstance(gm(x)["masks"], Masks)


def test_a_model_in_training_mode_is_exported_in_evaluation_mode_and_not_changed(tmp_path):
    model = small_net().train()
    before = copy.deepcopy(model.state_dict())
    onnx_model.export_onnx(model, (torch.randn(2, 3, 7, 9),), tmp_path / "m.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_export_is_silent(capfd):
    onnx_model.to_onnx(small_net(), (torch.randn(1, 3, 7, 9),))
    assert capfd.readouterr() == ("", "")


def test_an_operator_unknown_to_the_exporter_is_named():
    with pytest.raises(ArtifactError, match=r"Eigenvalues cannot be exported.*aten\.linalg_eig") as caught:
        onnx_model.to_onnx(Eigenvalues(), (torch.randn(5, 5),))
    assert caught.value.__cause__ is not None


def test_a_network_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    x = (torch.randn(1, 3, 7, 9),)
    other = small_net()
    with torch.no_grad():
        other[0].weight.mul_(1.01)
    data = onnx_model.to_onnx(other, x)
    monkeypatch.setattr(onnx_model, "to_onnx", lambda gm, inputs, **_: data)
    with pytest.raises(ArtifactError, match=r"output 0 of the exported network differs from torch by 0\.0"):
        onnx_model.export_onnx(small_net(), x, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_returns_nan_is_not_written(tmp_path):
    model = small_net()
    with torch.no_grad():
        model[0].bias.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="differs from torch by nan"):
        onnx_model.export_onnx(model, (torch.randn(1, 3, 7, 9),), tmp_path / "m.onnx")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*m\.onnx: No such file.*choose a folder"):
        onnx_model.export_onnx(small_net(), (torch.randn(1, 3, 7, 9),), tmp_path / "missing" / "m.onnx")
