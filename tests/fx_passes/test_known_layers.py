"""Layers are known by the forward that they run: a subclass with its own may compute anything."""

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import captured, image, largest_error, outputs, randomise

from fx_passes import Plan, enumerate_spans, linearize, merge, random_plan
from fx_passes.operators import Role, role

LAYERS = {
    nn.Conv2d: (5, 5, 3), nn.BatchNorm2d: (5,), nn.AvgPool2d: (2,), nn.ConstantPad2d: (1, 0.0), nn.ZeroPad2d: (1,),
    nn.Dropout: (), nn.Dropout2d: (), nn.ReLU: (), nn.ReLU6: (), nn.PReLU: (), nn.GELU: (),
}  # fmt: skip
EVERY_KIND = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)


class Around(nn.Module):
    """Two convolutions around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.one, self.layer, self.two = nn.Conv2d(3, 5, 3), layer, nn.Conv2d(5, 5, 3)

    def forward(self, x):
        return self.two(torch.tanh(self.layer(self.one(x))))


class Squared(nn.BatchNorm2d):
    """A norm that branches on values, so that no trace sees through it."""

    def forward(self, x):
        y = super().forward(x)
        return y**2 if bool((y.detach() < 1e9).all()) else y


def with_layer(plain, layer):
    """Return the graph of a network around a plain layer and the layer's node, another layer put in its place."""
    gm = captured(Around(plain), image())
    (node,) = (node for node in gm.graph.nodes if node.name == "layer")
    gm.set_submodule(str(node.target), randomise(layer).double())
    return gm, node


def subclass(kind, **members):
    return type("Special", (kind,), members)


def squared(self, x):
    return super(type(self), self).forward(x) ** 2


@EVERY_KIND
def test_a_subclass_with_a_forward_of_its_own_is_left_alone_and_says_why(kind):
    arguments = LAYERS[kind]
    gm, node = with_layer(kind(*arguments), subclass(kind, forward=squared)(*arguments))
    assert role(gm, node) is Role.BARRIER
    parent = "ConstantPad2d" if kind is nn.ZeroPad2d else kind.__name__
    refused = f"layer: Special inherits from {parent} but has a forward of its own"
    assert any(span.refusal.startswith(refused) for span in enumerate_spans(gm))


@EVERY_KIND
def test_merging_changes_nothing_about_such_a_subclass(kind):
    arguments = LAYERS[kind]
    gm, _ = with_layer(kind(*arguments), subclass(kind, forward=squared)(*arguments))
    assert largest_error(outputs(merge(gm, Plan()), image()), outputs(gm.eval(), image())) < 1e-9


@EVERY_KIND
def test_a_subclass_with_its_parents_forward_is_what_its_parent_is(kind):
    arguments = LAYERS[kind]
    gm, node = with_layer(kind(*arguments), subclass(kind)(*arguments))
    assert role(gm, node) is role(*with_layer(kind(*arguments), kind(*arguments))) is not Role.BARRIER


@pytest.mark.parametrize("seed", range(5))
def test_plans_around_a_norm_that_no_trace_sees_through_merge_exactly(seed):
    gm, x = captured(Around(Squared(5)), image()), image()
    plan = random_plan(gm, np.random.default_rng(seed))
    linearized = linearize(gm, plan)
    assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < 1e-9


def test_a_convolution_that_convolves_in_its_own_way_is_left_alone():
    def convolve(self, x, weight, bias):
        return nn.Conv2d._conv_forward(self, x, 2 * weight, bias)

    gm, node = with_layer(nn.Conv2d(5, 5, 3), subclass(nn.Conv2d, _conv_forward=convolve)(5, 5, 3))
    assert role(gm, node) is Role.BARRIER


def test_a_layer_whose_forward_was_replaced_is_left_alone():
    layer = nn.Conv2d(5, 5, 3)
    layer.forward = torch.tanh
    gm, node = with_layer(nn.Conv2d(5, 5, 3), layer)
    assert role(gm, node) is Role.BARRIER
