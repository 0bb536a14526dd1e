"""Real architectures with random weights and statistics: random plan, linearize, merge, same function."""

import copy
import functools

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from toy_nets import convolutions, outputs, randomise, relative_error

from fx_passes import capture, enumerate_spans, linearize, merge, random_plan
from fx_passes.kinds import kind_names

pytestmark = pytest.mark.whole

CLASSES = 7


def vgg16_bn():
    """The convolutional part with a small head, without the original's 120 million linear weights."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


NETWORKS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "vgg16_bn": vgg16_bn,
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0", num_classes=CLASSES),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES),
    "mobilenetv2_050": lambda: timm.create_model("mobilenetv2_050", num_classes=CLASSES),
}


@functools.cache
def network(name):
    """Return the captured network; no test may change it."""
    torch.manual_seed(0)
    return capture(randomise(NETWORKS[name]()), torch.randn(2, 3, 37, 41))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_networks_offer_choices_of_every_kind():
    for name in NETWORKS:
        kinds = {choice.kind for span in enumerate_spans(network(name)) for choice in span.choices}
        assert kinds == set(kind_names()), name


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_plan_is_carried_out_exactly(name, seed):
    gm = copy.deepcopy(network(name)).double()
    plan = random_plan(gm, np.random.default_rng(seed))
    x = images(2, 3, 37, 41).double()
    linearized = linearize(gm, plan)
    merged = merge(linearized, plan)
    (wanted,), (found,) = outputs(linearized, x), outputs(merged, x)
    assert relative_error(found, wanted) < 1e-9
    assert found.shape == (2, CLASSES)
    assert len(convolutions(merged)) < len(convolutions(gm))
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in merged.modules())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_single_precision_is_close(name):
    gm = network(name)
    plan = random_plan(gm, np.random.default_rng(2))
    linearized = linearize(gm, plan)
    x = images(2, 3, 37, 41)
    (wanted,), (found,) = outputs(linearized, x), outputs(merge(linearized, plan), x)
    assert relative_error(found, wanted) < 1e-4


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18"])
def test_other_batch_and_image_sizes_than_the_captured_ones(name):
    gm = copy.deepcopy(network(name)).double()
    plan = random_plan(gm, np.random.default_rng(3))
    linearized = linearize(gm, plan)
    x = images(3, 3, 53, 47).double()
    (wanted,), (found,) = outputs(linearized, x), outputs(merge(linearized, plan), x)
    assert relative_error(found, wanted) < 1e-9
    assert found.shape == (3, CLASSES)


def test_a_trained_linearized_network_merges_exactly():
    gm = copy.deepcopy(network("mobilenetv2_050")).double()
    plan = random_plan(gm, np.random.default_rng(4))
    linearized = linearize(gm, plan).train()
    optimiser = torch.optim.SGD(linearized.parameters(), lr=0.01)
    for step in range(2):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linearized(images(3, 3, 37, 41).double() + step), torch.arange(3)).backward()
        optimiser.step()
    x = images(2, 3, 37, 41).double()
    (wanted,), (found,) = outputs(linearized.eval(), x), outputs(merge(linearized, plan), x)
    assert relative_error(found, wanted) < 1e-9
