"""Linear layers of global heads and gates become 1x1 convolutions where spans can hold them."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from toy_nets import captured, image, outputs, randomise, relative_error

from fx_passes import capture, enumerate_spans, linearize, merge, random_plan
from fx_passes.operators import image_shape
from fx_passes.plan import Plan

pytestmark = pytest.mark.whole


def layers(gm):
    return [type(gm.get_submodule(node.target)) for node in gm.graph.find_nodes(op="call_module", sort=True)]


class Head(nn.Module):
    """Pooling, a flattening in some spelling, and layers on vectors."""

    def __init__(self, flatten, *rest):
        super().__init__()
        self.pool, self.flatten, self.rest = nn.AdaptiveAvgPool2d(1), flatten, nn.Sequential(*rest)

    def forward(self, x):
        return self.rest(self.flatten(self.pool(x)))


def two_layers():
    return [nn.Linear(5, 7), nn.BatchNorm1d(7, eps=0.1, momentum=0.3), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 3)]


def random_statistics(net):
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    return net


SPELLINGS = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], x.shape[1]),
    "squeeze": lambda x: x.squeeze(-1).squeeze(-1),
    "index": lambda x: torch.squeeze(x)[:, :],
}


@pytest.mark.parametrize("flatten", SPELLINGS.values(), ids=SPELLINGS)
def test_two_linear_layers_behind_pooling_become_convolutions(flatten):
    torch.manual_seed(0)
    net, x = random_statistics(Head(flatten, *two_layers())).eval().double(), image(5)
    gm = capture(net, x)
    assert layers(gm) == [
        nn.AdaptiveAvgPool2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Conv2d,
    ]  # fmt: skip
    *_, last, output = gm.graph.nodes
    assert last.target is torch.flatten
    assert output.args == (last,)
    assert relative_error(outputs(gm, x)[0], net(x)) < 1e-12
    assert outputs(gm, image(5, 4, 3, batch=3))[0].shape == (3, 3)
    assert [image_shape(node)[2:] for node in gm.graph.find_nodes(op="call_module")] == [(1, 1)] * 6
    kinds = {choice.kind for span in enumerate_spans(gm) for choice in span.choices}
    assert {"merge", "fit"} <= kinds
    norm = next(m for m in gm.modules() if isinstance(m, nn.BatchNorm2d))
    assert (norm.eps, norm.momentum) == (0.1, 0.3)
    assert torch.equal(norm.running_var, net.rest[1].running_var)


def test_training_goes_on_as_on_vectors():
    torch.manual_seed(0)
    net, x = Head(nn.Flatten(), *two_layers()).double(), image(5, batch=4)
    gm = capture(net, x).train()
    net.train()
    torch.manual_seed(1)
    wanted = net(x)
    torch.manual_seed(1)
    found = gm(x)
    assert relative_error(found, wanted) < 1e-12
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert relative_error(gm.get_submodule("rest_0").weight.grad.flatten(1), net.rest[0].weight.grad) < 1e-9
    assert relative_error(gm.get_submodule("rest_1").running_mean, net.rest[1].running_mean) < 1e-12


def test_frozen_weights_stay_frozen():
    net = Head(nn.Flatten(), *two_layers())
    net.rest[0].weight.requires_grad_(False)
    gm = capture(net, image(5).float())
    assert [p.requires_grad for p in gm.get_submodule("rest_0").parameters()] == [False, True]


class Gate(nn.Module):
    """Squeeze-and-excitation with linear layers."""

    def __init__(self, back):
        super().__init__()
        self.pool, self.back = nn.AdaptiveAvgPool2d(1), back
        self.layers = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 5, bias=False), nn.Sigmoid())

    def forward(self, x):
        n, c = x.shape[:2]
        return x * self.back(self.layers(self.pool(x).view(n, c)))


BACK = {
    "view": lambda y: y.view(y.shape[0], y.shape[1], 1, 1),
    "index": lambda y: y[:, :, None, None],
    "unsqueeze": lambda y: y.unsqueeze(-1).unsqueeze(2),
    "module": nn.Unflatten(1, (5, 1, 1)),
}


@pytest.mark.parametrize("back", BACK.values(), ids=BACK)
def test_a_gate_of_linear_layers_needs_no_reshape(back):
    x = image(5)
    net = Gate(back)
    gm = captured(net, x)
    assert layers(gm) == [nn.AdaptiveAvgPool2d, nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Sigmoid]
    assert [node.name for node in gm.graph.nodes if node.op in ("call_function", "call_method")] == ["mul"]
    assert relative_error(outputs(gm, x)[0], net.double()(x)) < 1e-12


KEPT = {
    "alone": lambda: Head(nn.Flatten(), nn.Dropout(), nn.Linear(5, 3), nn.ReLU()),
    "no linear": lambda: Head(nn.Flatten(), nn.ReLU()),
    "several pixels": lambda: nn.Sequential(nn.Flatten(), nn.Linear(715, 5), nn.ReLU(), nn.Linear(5, 3)),
    "norm between": lambda: Head(nn.Flatten(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)),
    "transposed": lambda: Head(lambda x: x.flatten(1).t().contiguous(), nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 3)),
}


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_other_linear_layers_stay(build):
    net = build()
    wanted = sum(isinstance(module, nn.Linear) for module in net.modules())
    gm = captured(net, image(5))
    assert layers(gm).count(nn.Linear) == wanted
    assert nn.Conv2d not in layers(gm)


class TwoHeads(nn.Module):
    """Features that two classifiers read."""

    def __init__(self):
        super().__init__()
        self.body = Head(nn.Flatten(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 11), nn.ReLU())
        self.one, self.two = nn.Linear(11, 2), nn.Linear(11, 3)

    def forward(self, x):
        x = self.body(x)
        return self.one(x), self.two(x)


def test_what_several_read_is_flattened_for_all_of_them():
    x = image(5)
    net = TwoHeads()
    gm = captured(net, x)
    assert layers(gm)[-2:] == [nn.Linear, nn.Linear]
    assert layers(gm).count(nn.Conv2d) == 2
    for found, wanted in zip(outputs(gm, x), net.double()(x), strict=True):
        assert relative_error(found, wanted) < 1e-12


NETWORKS = {
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
    "timm": lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_of_mobilenet_v3_can_be_merged_and_fitted(name):
    torch.manual_seed(0)
    model, x = randomise(NETWORKS[name]()).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    gm = capture(model, x)
    assert nn.Linear not in layers(gm)
    assert relative_error(outputs(gm, x)[0], model(x)) < 1e-9
    last = [node.name for node in gm.graph.find_nodes(op="call_module", sort=True)][-1]
    head = [
        c for span in enumerate_spans(gm) for c in span.choices if c.exit == last and span.piece.in_shape[2:] == (1, 1)
    ]
    assert {"merge", "fit"} <= {choice.kind for choice in head}
    merge_head = next(choice for choice in head if choice.kind == "merge")
    for plan in (Plan.of([merge_head]), random_plan(gm, np.random.default_rng(0))):
        linearized = linearize(gm, plan)
        assert relative_error(outputs(merge(linearized, plan), x)[0], outputs(linearized, x)[0]) < 1e-9


def test_the_classifier_of_a_resnet_stays_a_linear_layer():
    gm = capture(torchvision.models.resnet18(num_classes=7), torch.randn(1, 3, 64, 64))
    assert layers(gm)[-1] is nn.Linear
