"""Kept convolutions behind a change: which they are, what they aim at, and new weights where norms stand."""

import copy

import pytest
import torch
from torch import nn

from depthcomp.data.calibration import cross_validated, separate
from depthcomp.fitting.kept_slots import consumers_of, kept_behind, nearest_behind
from depthcomp.fitting.refit import Refitter
from fx_passes import (
    CapturedNetwork,
    Drop,
    Plan,
    capture,
    enumerate_spans,
    fold_batch_norms,
    linearize,
    merge,
    solved_without_norm,
)
from fx_passes.affine import AffineConv
from fx_passes.facts import GraphFacts
from fx_passes.slot_layers import load_operator, run_operator


class Residual(nn.Module):
    """A stem, two residual blocks of 1x1, depthwise and 1x1, a head; norms with random statistics."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.one, self.two = self.block(), self.block()
        self.head = nn.Linear(6, 5)

    def block(self):
        return nn.Sequential(
            nn.Conv2d(6, 11, 1, bias=False), nn.BatchNorm2d(11), nn.ReLU(),
            nn.Conv2d(11, 11, 3, padding=1, groups=11, bias=False), nn.BatchNorm2d(11), nn.ReLU(),
            nn.Conv2d(11, 6, 1, bias=True), nn.BatchNorm2d(6),
        )  # fmt: skip

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x)
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))


def images(count, seed=1):
    return torch.randn(count, 3, 9, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    model = Residual().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.normal_(norm.bias, std=0.3)
    return capture(model.eval(), images(1))


@pytest.fixture(scope="module")
def network(captured):
    folded = copy.deepcopy(captured)
    fold_batch_norms(folded)
    return CapturedNetwork(folded)


@pytest.fixture(scope="module")
def dropped(network):
    """A plan without the first block."""
    entry, exit_ = (name for name in network.nodes if name in ("relu", "stem_2", "add"))
    return Plan((Drop(entry, exit_),))


def test_kept_convolutions_behind_a_dropped_block(network, dropped):
    found = kept_behind(GraphFacts(linearize(network, dropped)), dropped)
    assert len(found) == 4
    first, middle, last, head = found
    assert (head.node, head.target, head.other) == ("head", "head", None)
    assert (first.target, middle.target) == (first.node, middle.node)
    assert first.other is middle.other is None
    (choice,) = dropped
    assert last.other == choice.exit
    assert last.target != last.node


def test_the_nearest_are_those_that_nothing_refitted_comes_before(network, dropped):
    """Behind a dropped block that is the next block's first convolution; its others read what that one restores."""
    linearized = GraphFacts(linearize(network, dropped))
    (choice,) = dropped
    (nearest,) = nearest_behind(linearized, dropped, dropped)
    assert (nearest.node, nearest.entry) == ("two_1", choice.exit)


def test_the_nearest_behind_several_changes(network):
    """A dropped depthwise convolution is made up for by the one behind it, towards the sum that it goes into.

    The second one's sum has another summand that the first one restores.
    """
    plan = Plan(tuple(choice for choice in _drops(network) if choice.exit in ("one_5", "two_5")))
    assert len(plan) == 2
    linearized = GraphFacts(linearize(network, plan))
    found = nearest_behind(linearized, plan, plan)
    assert [(slot.node, slot.target, slot.other) for slot in found] == [
        ("one_7", "add", "stem_2"), ("two_7", "two_7", None)
    ]  # fmt: skip
    assert [slot.node for slot in nearest_behind(linearized, plan, [plan.choices[1]])] == ["two_7"]
    assert [slot.node for slot in kept_behind(linearized, plan)] == ["one_7", "two_1", "two_7", "head"]


def _drops(network):
    return [c for span in enumerate_spans(network) for c in span.choices if c.kind == "drop"]


def test_the_consumers_of_a_tensor_of_the_original(network):
    """Through the sum that a skip goes into, what reads it is behind the branch, which is refitted."""
    assert [slot.node for slot in consumers_of(network, "stem_2")] == ["one_1"]
    assert consumers_of(network, "head") == []
    (head,) = consumers_of(network, "add_1")
    assert (head.node, head.target) == ("head", "head")


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), -1), ((4, 7, 6), -1)])
def test_an_operator_runs_on_vectors_and_on_pixels_wherever_their_channels_are(shape, axis):
    weight, bias = torch.randn(5, 6, 1, 1), torch.randn(5)
    x = torch.randn(shape)
    found = run_operator(AffineConv(weight, bias, (1, 1), (0, 0, 0, 0), 1), x, axis)
    wanted = torch.nn.functional.linear(x.movedim(axis, -1), weight[..., 0, 0], bias).movedim(-1, axis)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_nothing_is_changed_by_an_empty_plan(network):
    assert kept_behind(GraphFacts(linearize(network, Plan())), Plan()) == []
    for kept in ("nearest", "all"):
        assert Refitter(network, cross_validated(images(6), seed=0)).carry_out(Plan(), kept=kept).solved == {}


def test_a_refit_with_kept_convolutions_is_nearer_to_the_original(network, dropped):
    calibration = separate(images(24), images(12, seed=2), seed=0)
    refitter = Refitter(network, calibration)
    assert refitter.loss(dropped, kept="all") < 0.9 * refitter.loss(dropped)
    depthwise = Plan(tuple(choice for choice in _drops(network) if choice.exit == "one_5"))
    assert refitter.loss(depthwise, kept="nearest") < 0.7 * refitter.loss(depthwise)


class Projected(Residual):
    """The second block's shortcut is a projection that runs after the block."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x)
        return self.head((self.two(x) + self.projection(x)).mean((2, 3)))


def test_a_projection_is_refitted_towards_what_the_branch_before_it_leaves():
    torch.manual_seed(0)
    gm = capture(Projected().double().eval(), images(1))
    fold_batch_norms(gm)
    network = CapturedNetwork(gm)
    entry, exit_ = (name for name in network.nodes if name in ("stem_2", "add"))
    plan = Plan((Drop(entry, exit_),))
    found = {slot.node: slot for slot in kept_behind(GraphFacts(linearize(network, plan)), plan)}
    assert (found["projection"].target, found["projection"].other) == ("add_1", "two_7")
    refit = Refitter(network, separate(images(24), images(12, seed=2), seed=0)).carry_out(plan, kept="all")
    assert "projection" in refit.solved


@pytest.mark.parametrize("dead", [False, True])
def test_new_weights_in_a_graph_with_norms(captured, network, dead):
    """Where a channel's scale is zero, its weights do not show and stay out of it."""
    before, folded = copy.deepcopy(captured), copy.deepcopy(captured)
    generator = torch.Generator().manual_seed(5)
    convolutions = [name for name, node in network.nodes.items() if _is_convolution(network.gm, node)]
    if dead:
        for gm in (before, folded):
            for module in gm.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.data[1] = 0
    fold_batch_norms(folded)
    for name in convolutions:
        node = next(n for n in folded.graph.nodes if n.name == name)
        conv = folded.get_submodule(node.target)
        weight = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
        bias = torch.randn(conv.out_channels, generator=generator, dtype=torch.float64)
        if dead:
            weight[1] = 0
        operator = AffineConv(weight, bias, conv.stride, (0, 0, 0, 0), conv.groups)
        for gm in (before, folded):
            load_operator(GraphFacts(gm), name, operator)
        assert torch.allclose(conv.weight, weight)
        assert torch.allclose(conv.bias, bias)
    x = images(4)
    with torch.no_grad():
        assert torch.allclose(before(x), folded(x), atol=1e-9)
        assert not torch.allclose(before(x), captured(x), atol=0.1)


def _is_convolution(gm, node):
    return node.op == "call_module" and isinstance(gm.get_submodule(node.target), nn.Conv2d)


def test_the_trainable_form_computes_the_same(captured, network, dropped):
    refit = Refitter(network, cross_validated(images(12), seed=0)).carry_out(dropped, kept="all")
    assert len(refit.solved) == 4
    trainable = linearize(captured, dropped)
    for name, operator in refit.solved.items():
        load_operator(GraphFacts(trainable), name, operator)
    x = images(5, seed=7)
    with torch.no_grad():
        wanted = merge(refit.linearized, dropped)(x)
        assert torch.allclose(trainable(x), wanted, atol=1e-9)
        assert torch.allclose(merge(trainable, dropped)(x), wanted, atol=1e-9)
        assert not torch.allclose(linearize(captured, dropped)(x), wanted, atol=1e-3)
    assert not solved_without_norm(trainable, dropped)


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_a_channel_that_a_norm_scales_to_nothing_shows_once_it_is_refitted(captured, scale):
    """The refit judges a graph without norms, where such a channel is like any other."""
    before = copy.deepcopy(captured)
    for module in before.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[1] *= scale
    folded = copy.deepcopy(before)
    fold_batch_norms(folded)
    generator = torch.Generator().manual_seed(6)
    for node in [node for node in folded.graph.nodes if _is_convolution(folded, node)]:
        conv = folded.get_submodule(node.target)
        weight, bias = (torch.randn(part.shape, generator=generator).double() for part in (conv.weight, conv.bias))
        for gm in (before, folded):
            load_operator(GraphFacts(gm), node.name, AffineConv(weight, bias, conv.stride, (0, 0, 0, 0), conv.groups))
    with torch.no_grad():
        assert torch.allclose(before(images(4)), folded(images(4)), atol=1e-9)
