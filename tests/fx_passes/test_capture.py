"""Capture: any style of writing a network becomes the same canonical graph, and the model stays as it was."""

import copy
import inspect
import operator

import pytest
import timm
import torch
import torch.nn.functional as F
from captured_checks import called, check
from torch import nn
from toy_nets import Chain, image, randomise, relative_error

from depthcomp_errors import CaptureError
from fx_passes import capture, enumerate_spans, find_span
from fx_passes.normalise.additions import UnifyAdditions
from fx_passes.operators import image_shape

pytestmark = pytest.mark.whole


def functions(gm):
    return [node.target for node in gm.graph.nodes if node.op in ("call_function", "call_method")]


class Functional(nn.Module):
    """Everything that torch.nn.functional offers instead of modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=0.1)
        self.kernel = nn.Parameter(torch.randn(5, 1, 3, 3))
        self.shift = nn.Parameter(torch.randn(5))
        self.columns = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = F.conv2d(x, self.kernel, self.shift, padding=1, groups=5)
        x = F.batch_norm(
            x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias,
            self.training, 0.1, self.norm.eps,
        )  # fmt: skip
        x = F.leaky_relu(F.hardtanh(x, -0.5, 2.0), 0.3)
        x = F.dropout(F.softplus(x, 2.0), 0.4, self.training)
        x = torch.sigmoid(F.silu(x).tanh())
        return F.linear(F.avg_pool2d(F.gelu(x, approximate="tanh"), 3, padding=1), self.columns)


def test_functional_layers_become_modules():
    torch.manual_seed(0)
    gm = check(randomise(Functional()), torch.randn(2, 3, 11, 13))
    assert called(gm) == [
        nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.Hardtanh, nn.LeakyReLU, nn.Softplus,
        nn.Dropout, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.AvgPool2d, nn.Linear,
    ]  # fmt: skip
    assert functions(gm) == []
    dropout = next(m for m in gm.modules() if isinstance(m, nn.Dropout))
    assert dropout.p == 0.4


def test_train_and_eval_work_on_the_captured_functional_layers():
    torch.manual_seed(0)
    gm = capture(randomise(Functional()), torch.randn(2, 3, 11, 13))
    x = torch.randn(2, 3, 11, 13)
    before = gm(x)
    gm.train()
    assert not torch.allclose(gm(x), before)


class Sums(nn.Module):
    """Every spelling of a sum."""

    def forward(self, a, b):
        c = torch.add(a, b)
        c = c.add(a)
        c = c + torch.add(input=b, other=a)
        c += b
        c = c.add_(a)
        return torch.add(c, b, alpha=3)


def test_every_plain_sum_becomes_one_kind_of_node():
    gm = check(Sums(), torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7))
    assert functions(gm) == [operator.add] * 6 + [torch.add]


class PositionalNames(nn.Module):
    """Tensors handed over by name instead of by position."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.last = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Identity()

    def forward(self, x):
        y = self.act(input=self.conv(input=F.pad(input=x, pad=[1, 1, 0, 0])))
        return self.last(input=torch.cat(tensors=[y, y], dim=1))


def test_tensors_handed_over_by_name_are_understood():
    torch.manual_seed(0)
    gm = check(PositionalNames(), torch.randn(1, 3, 5, 7))
    assert find_span(gm, "x", "cat").choices


class Overwriting(nn.Module):
    """In-place layers whose input is read again afterwards, so that the reader sees the result."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        z = self.conv(self.act(y))
        y += z
        return y * F.relu6(z, inplace=True) + z


def test_what_an_in_place_layer_overwrites_is_read_as_overwritten():
    torch.manual_seed(0)
    gm = check(Overwriting(), torch.randn(2, 3, 7, 5))
    assert not any(getattr(module, "inplace", False) for module in gm.modules())
    assert operator.iadd not in functions(gm)


class OverwritingItsInput(nn.Module):
    """Normalises the image in place, and only then looks at it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        x.sub_(0.5).div_(0.2)
        return self.conv(x)


def test_a_forward_that_overwrites_its_input_is_captured_without_changing_the_example():
    torch.manual_seed(0)
    net, x = OverwritingItsInput(), torch.randn(2, 3, 7, 5)
    before = x.clone()
    gm = capture(net, x)
    assert torch.equal(x, before)
    assert relative_error(gm(x), net(before)) < 1e-6


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv2_050"])
def test_timm_norm_and_activation_in_one_are_split(name):
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=7))
    gm = check(model, torch.randn(2, 3, 37, 41))
    kinds = called(gm)
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d)
    assert nn.ReLU6 in kinds
    assert not [kind for kind in kinds if "BatchNormAct" in kind.__name__]


def test_tensorflow_padding_becomes_explicit():
    torch.manual_seed(0)
    model = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=7))
    with torch.no_grad():
        gm = check(model, torch.randn(2, 3, 37, 41))
    pads = [node for node in gm.graph.nodes if node.target is F.pad]
    assert pads
    assert all(isinstance(side, int) for node in pads for side in node.args[1])
    assert any(node.args[1][0] != node.args[1][1] for node in pads)


def test_every_image_knows_its_shape():
    gm = capture(Chain(), torch.randn(2, 3, 11, 13))
    assert [image_shape(node) for node in gm.graph.nodes if node.op == "call_module"] == [
        *[(2, 5, 11, 13)] * 3,
        *[(2, 7, 6, 7)] * 5,
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = Chain()
    model.conv2.weight.data[1, 2, 0, 0] = value
    with pytest.raises(CaptureError, match=r"conv2\.weight of Chain holds NaN or infinite values"):
        capture(model, torch.zeros(1, 3, 11, 13))


def test_statistics_that_are_not_finite_are_named():
    model = Chain()
    model.bn1.running_var[3] = float("nan")
    with pytest.raises(CaptureError, match=r"bn1\.running_var"):
        capture(model, torch.zeros(1, 3, 11, 13))


@pytest.mark.parametrize("inputs", [torch.zeros(1, 4, 11, 13), (torch.zeros(1, 3, 9, 9),) * 2, ()])
def test_example_inputs_that_do_not_fit_are_described(inputs):
    with pytest.raises(CaptureError, match=r"example_inputs of shape .* do not fit Chain.*one tensor per forward"):
        capture(Chain(), inputs)


class DataDependent(nn.Module):
    """Branches on the values of its input."""

    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_a_branch_on_data_names_the_models_own_line():
    line = inspect.getsourcelines(DataDependent.forward)[1] + 1
    with pytest.raises(CaptureError, match=rf"DataDependent cannot be traced at .*test_capture\.py:{line}: `if x\.sum"):
        capture(DataDependent(), torch.randn(1, 3, 5, 5))


class SizeDependent(nn.Module):
    """Branches on sizes, types and lengths, which are constants once the example is known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        if x.shape[-1] % 2 and x.dtype.is_floating_point and len(x) > 1:
            x = F.pad(x, (0, x.size(-1) % 2, 1, 0))
        parts = [self.conv(part) for part in x.split(1)]
        return torch.cat(list(parts), 0)


def test_a_branch_on_sizes_is_made_concrete():
    torch.manual_seed(0)
    model, x = SizeDependent(), torch.randn(2, 3, 7, 5)
    gm = check(model, x)
    assert F.pad in functions(gm)


class Random(nn.Module):
    """Draws random numbers also in evaluation mode."""

    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_random_forward_is_refused():
    with pytest.raises(CaptureError, match=r"Random differs from the model.*draws random numbers"):
        capture(Random(), torch.zeros(1, 3, 5, 5))


class Counting(nn.Module):
    """Computes something else each time, as it counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.reshape(self.calls, -1)


def test_a_graph_that_fails_where_the_model_did_not_names_the_node(capfd):
    with pytest.raises(
        CaptureError, match=r"Counting was traced.* at reshape in the forward .*invalid.*keep no counters"
    ):
        capture(Counting(), torch.zeros(1, 1, 5, 5))
    assert capfd.readouterr() == ("", "")


def test_a_pass_that_fails_is_named(monkeypatch, capfd):
    def fail(self, gm):
        raise KeyError("conv1")

    monkeypatch.setattr(UnifyAdditions, "call", fail)
    with pytest.raises(CaptureError, match=r"Chain was traced, but UnifyAdditions could not .*'conv1'.*report it"):
        capture(Chain(), torch.zeros(1, 3, 11, 13))
    assert capfd.readouterr() == ("", "")


class Masked(nn.Module):
    """Returns a boolean, an integer and an image."""

    def forward(self, x):
        return x > 0, x.argmax(1), x


def test_outputs_need_not_be_floating_point():
    gm = capture(Masked(), torch.randn(1, 3, 5, 5))
    assert [output.dtype for output in gm(torch.zeros(1, 3, 5, 5))] == [
        torch.bool,
        torch.int64,
        torch.float32,
    ]


def test_a_norm_without_statistics_is_captured_and_ends_spans():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, track_running_stats=False)
    gm = check(nn.Sequential(nn.Conv2d(3, 5, 3), norm, nn.Conv2d(5, 5, 3)), torch.randn(2, 3, 11, 13))
    refusals = [span.refusal for span in enumerate_spans(gm)]
    assert any("keeps no running statistics" in refusal for refusal in refusals)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_untouched(training):
    torch.manual_seed(0)
    model = randomise(timm.create_model("mobilenetv2_050", num_classes=7)).train(training)
    before, names = copy.deepcopy(model.state_dict()), set(vars(model))
    modes = [module.training for module in model.modules()]
    gm = capture(model, torch.randn(1, 3, 33, 33))
    gm(torch.randn(1, 3, 33, 33))
    for parameter in gm.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert set(vars(model)) == names
    assert not any(module.training for module in gm.modules())


def test_user_attributes_survive_copies_and_recompiling():
    model = Chain()
    model.num_classes, model.pretrained_cfg = 7, {"mean": (0.5,)}
    gm = capture(model, torch.zeros(1, 3, 11, 13))
    copied = copy.deepcopy(gm)
    gm.graph.lint()
    gm.recompile()
    for graph in (gm, copied, copy.deepcopy(copied)):
        assert graph.num_classes == 7
        assert graph.pretrained_cfg == {"mean": (0.5,)}


def test_unused_weights_are_left_behind():
    class Spare(Chain):
        def __init__(self):
            super().__init__()
            self.spare, self.scale = nn.Conv2d(3, 3, 3), nn.Parameter(torch.ones(3))

    gm = capture(Spare(), torch.zeros(1, 3, 11, 13))
    assert not [name for name in gm.state_dict() if name.startswith(("spare", "scale"))]


def test_several_example_inputs_and_one_in_double_precision():
    gm = capture(Chain().double(), image())
    assert next(gm.parameters()).dtype == torch.float64


class SizeDependentNorm(SizeDependent):
    """Branches on sizes, and holds layers that behave differently in training."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(5), nn.Dropout(0.5)

    def forward(self, x):
        return self.act(F.relu(self.norm(super().forward(x))))


def test_a_graph_of_concrete_sizes_trains():
    torch.manual_seed(0)
    gm = capture(SizeDependentNorm().train(), torch.randn(2, 3, 7, 5)).train()
    mean = gm.norm.running_mean.clone()
    gm(torch.randn(2, 3, 7, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in gm.parameters())
    assert not torch.equal(gm.norm.running_mean, mean)


class Cautious(nn.Module):
    """Computes its gate in single precision, whatever the type of the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 5, 3), nn.Parameter(torch.randn(1, 5, 1, 1))

    def forward(self, x):
        y = self.conv(x)
        gated = (y.float() * self.gate.to(torch.float32)).softmax(1)
        return gated.to(y.dtype) + y.to(torch.bfloat16).to(dtype=torch.float32)


def test_casts_that_change_nothing_are_dropped():
    torch.manual_seed(0)
    gm = check(Cautious(), torch.randn(2, 3, 7, 5))
    assert functions(gm).count("to") == 3  # to and from bfloat16, and to whatever type the image has
    assert "float" not in functions(gm)
    assert gm.double()(image(3, 7, 5)).dtype == torch.float64


def test_a_norm_over_several_processes_becomes_one_of_a_single_process():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=0.1, momentum=0.2), nn.ReLU(), nn.Conv2d(5, 4, 3))
    plain[1].running_mean.normal_()
    gm = check(nn.SyncBatchNorm.convert_sync_batchnorm(plain), torch.randn(2, 3, 9, 9))
    assert called(gm) == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    norm = gm.get_submodule("1")
    assert (norm.eps, norm.momentum, norm.training) == (0.1, 0.2, False)
    assert any(span.choices for span in enumerate_spans(gm))
    gm.train()(torch.randn(2, 3, 9, 9))


class Amplifying(nn.Module):
    """Shows the rounding of an activation that is written out, which the layer in its place rounds otherwise."""

    def forward(self, x):
        return x * torch.sigmoid(x) - nn.functional.silu(x) + 1e-3


def test_rounding_is_no_difference():
    x = torch.randn(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    gm = capture(Amplifying(), x)
    assert relative_error(gm(x), Amplifying()(x)) > 1e-5
    assert relative_error(gm.double()(x.double()), Amplifying()(x.double())) < 1e-6
