"""Ten optimiser steps on a linearized network, its norms in training mode: merging is still exact."""

import numpy as np
import pytest
import torch
import torchvision
from toy_nets import convolutions, outputs, randomise, relative_error

from fx_passes import capture, linearize, merge, random_plan

pytestmark = pytest.mark.whole

CLASSES = 7
STEPS = 10
NETWORKS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=CLASSES),
}


def train(gm, images, labels):
    """Take the steps with norms and dropout in training mode; return the graph in evaluation mode."""
    gm.train()
    optimiser = torch.optim.SGD(gm.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(gm(images), labels).backward()
        optimiser.step()
    return gm.eval()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_trained_linearized_network_merges_to_the_same_function(name):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 33, 33)
    gm = capture(randomise(NETWORKS[name]()), images)
    plans = (random_plan(gm, np.random.default_rng(seed)) for seed in range(99))
    plan = next(plan for plan in plans if {"merge", "fit"} <= {choice.kind for choice in plan})
    linearized = linearize(gm, plan)
    (before,) = outputs(linearized, images)
    trained = train(linearized, images, torch.arange(4))
    (wanted,), (found,) = outputs(trained, images), outputs(merge(trained, plan), images)
    assert relative_error(wanted, before) > 1e-2  # training did change it
    assert relative_error(found, wanted) < 1e-4
    assert len(convolutions(merge(trained, plan))) < len(convolutions(gm))
