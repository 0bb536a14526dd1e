"""Arithmetic with one constant per channel becomes a layer that spans hold and convolutions take up."""

import operator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from random_nets import Arithmetic
from torch import nn
from toy_nets import captured, convolutions, image, outputs, plan_of, randomise, relative_error

from fx_passes import capture, enumerate_spans, find_span, fold_batch_norms, linearize, merge, structure_tree
from fx_passes.channel_affine import ChannelAffine

SAME = 1e-12
PER_CHANNEL = {"number": 0.7, "integer": 3, "scalar": (), "one": (1,), "three": (5, 1, 1), "four": (1, 5, 1, 1)}


def layers(gm):
    return [gm.get_submodule(node.target) for node in gm.graph.nodes if node.op == "call_module"]


def functions(gm):
    return [node.target for node in gm.graph.nodes if node.op in ("call_function", "call_method")]


def constant_of(kind):
    torch.manual_seed(1)
    return torch.rand(kind) + 0.5 if isinstance(kind, tuple) else kind


@pytest.mark.parametrize("kind", PER_CHANNEL.values(), ids=PER_CHANNEL)
@pytest.mark.parametrize(
    ("spelling", "scales"),
    [
        (lambda x, c: x * c, True),
        (lambda x, c: c * x, True),
        (lambda x, c: x / c, True),
        (lambda x, c: torch.mul(x, c), True),
        (lambda x, c: torch.mul(other=c, input=x), True),
        (lambda x, c: torch.div(x, c), True),
        (lambda x, c: x.clone().mul_(c), True),
        (lambda x, c: x.div(other=c), True),
        (operator.imul, True),
        (lambda x, c: x + c, False),
        (lambda x, c: c + x, False),
        (lambda x, c: x - c, False),
        (lambda x, c: torch.sub(x, c), False),
        (lambda x, c: torch.sub(other=c, input=x), False),
        (lambda x, c: x.clone().add_(c), False),
        (lambda x, c: c - x, None),
    ],
)
def test_every_spelling_becomes_one_layer(kind, spelling, scales):
    net, x = Arithmetic(spelling, constant_of(kind)), image(5)
    gm = captured(net, x)
    (layer,) = layers(gm)
    assert type(layer) is ChannelAffine
    assert (layer.weight is not None, layer.bias is not None) == {True: (True, False), False: (False, True)}.get(
        scales, (True, True)
    )
    learned = [name for name, _ in layer.named_parameters()]
    assert learned == ([] if not isinstance(kind, tuple) else ["weight" if scales else "bias"])
    assert relative_error(outputs(gm, x.clone())[0], net.double()(x)) < SAME


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((11, 13), "one fixed number per channel"),
        ((5, 11, 13), "one fixed number per channel"),
        ((13,), "one fixed number per channel"),
    ],
)
def test_other_constants_stay_and_say_why(shape, reason):
    net = nn.Sequential(nn.Conv2d(3, 5, 1), Arithmetic(operator.mul, torch.rand(shape)), nn.Conv2d(5, 3, 1))
    gm = captured(net, image())
    assert operator.mul in functions(gm)
    assert any(reason in span.refusal for span in enumerate_spans(gm))


@pytest.mark.parametrize("net", [Arithmetic(torch.mul, torch.rand(2, 5, 1, 1)), Arithmetic(lambda x, c: c / x, 2.0)])
def test_what_is_no_map_of_each_channel_alone_stays(net):
    assert not any(isinstance(layer, ChannelAffine) for layer in layers(captured(net, image(5).abs() + 1)))


def test_a_constant_that_differs_in_type_keeps_its_promotion():
    net = Arithmetic(operator.mul, torch.rand(5, 1, 1, dtype=torch.float64))
    gm = capture(net, image(5).float())
    assert not layers(gm)
    assert gm(image(5).float()).dtype == torch.float64


class Neutral(nn.Module):
    """Python's sum begins with 0 + x."""

    def forward(self, x):
        return sum([x, x.relu()]) * 1 / 1 - 0


def test_arithmetic_that_changes_nothing_goes():
    x = image()
    gm = captured(Neutral(), x)
    assert functions(gm) == [operator.add]
    assert [type(layer) for layer in layers(gm)] == [nn.ReLU]
    assert torch.equal(outputs(gm, x)[0], x + x.relu())


class Normalised(nn.Module):
    """Input normalisation and a layer scale around two convolutions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.gamma, self.act = nn.Parameter(torch.randn(5)), nn.ReLU()

    def forward(self, x):
        x = self.conv1((x - self.mean) / self.std)
        return self.act(self.conv2(self.act(x)) * self.gamma.view(1, -1, 1, 1) + 0.5)


def test_neighbours_are_joined_and_trained_parameters_stay_trained():
    x = image()
    gm = captured(Normalised(), x)
    kinds = [type(layer) for layer in layers(gm)]
    assert kinds == [ChannelAffine, nn.Conv2d, nn.ReLU, nn.Conv2d, ChannelAffine, nn.ReLU]
    first, last = (layer for layer in layers(gm) if isinstance(layer, ChannelAffine))
    assert [name for name, _ in first.named_parameters()] == []
    assert [name for name, _ in last.named_parameters()] == ["weight"]  # the shift is a number of the forward
    assert not functions(gm)


def test_a_scale_goes_with_the_convolution_before_it():
    gm = captured(Normalised(), image())
    units = [unit.nodes for unit in structure_tree(gm).units]
    assert [len(nodes) for nodes in units] == [1, 2, 3, 1]  # norm; conv, act; conv, scale, act; output
    (alone,) = (span for span in enumerate_spans(gm) if (span.entry, span.exit) == ("act", "act_1"))
    assert {choice.kind for choice in alone.choices} == {"fit", "drop"}  # one layer: there is nothing to merge


def test_a_span_across_scales_merges_exactly_and_no_scale_is_left():
    x = image()
    gm = captured(Normalised(), x)
    span = find_span(gm, "x", "act_1")
    plan = plan_of(("x", "act_1", "merge", (5, 5)))
    assert "merge" in {choice.kind for choice in span.choices}
    linearized = linearize(gm, plan)
    merged = merge(linearized, plan)
    assert len(convolutions(merged)) == 1
    assert relative_error(outputs(merged, x)[0], outputs(linearized, x)[0]) < SAME


def test_scales_and_norms_after_a_convolution_are_folded_into_it():
    x = image()
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), Arithmetic(operator.mul, torch.rand(5, 1, 1)), nn.BatchNorm2d(5),
        Arithmetic(operator.add, 0.3),
    )  # fmt: skip
    gm = captured(net, x)
    wanted = outputs(gm, x)[0]
    assert len(layers(gm)) == 4
    assert [choice.kind for span in enumerate_spans(gm) for choice in span.choices] == ["fit"]  # it is one layer
    fold_batch_norms(gm)
    assert [type(layer) for layer in layers(gm)] == [nn.Conv2d]
    assert relative_error(outputs(gm, x)[0], wanted) < SAME


class HardSwish(nn.Module):
    """Hard swish as the first networks with it wrote it."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x):
        x = self.before(x)
        return self.after(x * F.relu6(x + 3) / 6)


def test_hard_swish_by_hand_is_an_activation():
    x = image()
    net = HardSwish()
    gm = captured(net, x)
    assert relative_error(outputs(gm, x)[0], net.double()(x)) < SAME
    assert [type(layer) for layer in layers(gm)] == [nn.Conv2d, nn.Hardswish, nn.Conv2d]
    assert "merge" in {choice.kind for choice in find_span(gm, "x", "after").choices}


def test_frozen_batch_norms_are_norms_like_any_other():
    torch.manual_seed(0)
    frozen = torchvision.ops.FrozenBatchNorm2d

    def network(norm):
        torch.manual_seed(0)
        return randomise(torchvision.models.resnet18(num_classes=7, norm_layer=norm))

    plain, ice = network(nn.BatchNorm2d), network(frozen)
    ice.load_state_dict({k: v for k, v in plain.state_dict().items() if "num_batches" not in k})
    x = torch.randn(2, 3, 33, 35)
    usual, gm = capture(plain, x), capture(ice, x)
    assert [type(layer) for layer in layers(gm)].count(ChannelAffine) == 20
    assert not [name for name, _ in gm.named_parameters() if "affine" in name]
    assert [s.choices for s in enumerate_spans(gm)] != []
    assert [len(s.choices) for s in enumerate_spans(gm)] == [len(s.choices) for s in enumerate_spans(usual)]
    assert relative_error(gm(x), ice(x)) < 1e-5
    fold_batch_norms(gm)
    assert ChannelAffine not in [type(layer) for layer in layers(gm)]
