"""linearize and merge: the same function to rounding, for every toy net and any plan."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_nets import (
    TOYS,
    Chain,
    DepthwiseChain,
    EvenSkip,
    Inverted,
    NestedResidual,
    Residual,
    SamePadded,
    Sandwich,
    captured,
    convolutions,
    frozen_copy,
    image,
    is_unchanged,
    largest_error,
    outputs,
    plan_of,
    relative_error,
    straight,
    toy,
)  # fmt: skip

from fx_passes import (
    CapturedNetwork,
    Plan,
    SpanLimits,
    enumerate_spans,
    linearize,
    merge,
    random_plan,
    solved_without_norm,
)
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.slot_layers import load_operator

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64
GENEROUS = SpanLimits(largest_kernel=11, largest_mac_growth=1e9)
Linear = lambda: nn.LeakyReLU(1.0)  # noqa: E731 - an activation that is the identity


def every_choice(gm, limits=GENEROUS):
    return [choice for span in enumerate_spans(gm, limits) for choice in span.choices]


def carry_out(gm, plan, *inputs):
    """Linearize and merge; check parity, shapes and that nothing given was changed; return both graphs."""
    before = frozen_copy(gm)
    linearized = linearize(gm, plan)
    between = frozen_copy(linearized)
    merged = merge(linearized, plan)
    assert is_unchanged(gm, before)
    assert is_unchanged(linearized, between)
    original, trainable, shallow = (outputs(graph, *inputs) for graph in (gm, linearized, merged))
    assert largest_error(shallow, trainable) < SAME
    assert [y.shape for y in shallow] == [y.shape for y in original]
    assert not any(module.training for module in merged.modules())
    return linearized, merged


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_single_choice_of_every_toy_net(name):
    gm, x = toy(name)
    for choice in every_choice(gm):
        linearized, merged = carry_out(gm, Plan((choice,)), x)
        names = {node.name for node in linearized.graph.nodes}
        assert {choice.entry, choice.exit} <= names
        if choice.kind == "merge":
            assert len(convolutions(merged)) < len(convolutions(gm)) or name.endswith("branches")


@pytest.mark.parametrize("name", sorted(TOYS))
def test_random_plans_of_every_toy_net(name):
    gm, x = toy(name)
    for seed in range(7):
        carry_out(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS), x)


@pytest.mark.parametrize("name", sorted(set(TOYS) - {"squeeze_excite", "signal_squeeze_excite"}))
def test_batch_and_image_size_may_differ_from_the_captured_ones(name):
    gm, _ = toy(name)
    _, other = toy(name, height=23, width=17, batch=3)
    for seed in range(3):
        carry_out(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS), other)


def test_an_empty_plan_only_folds_norms():
    gm, x = toy("chain")
    linearized, merged = carry_out(gm, Plan(), x)
    assert largest_error(outputs(merged, x), outputs(gm, x)) < SAME
    assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
    assert len(convolutions(merged)) == len(convolutions(linearized)) == 3


def test_a_merged_span_is_one_convolution_of_the_planned_kernel():
    gm, x = toy("chain")
    _, merged = carry_out(gm, plan_of(("x", "act3", "merge", (9, 7))), x)
    (conv,) = convolutions(merged)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((9, 7), (2, 2), (4, 3))
    assert [node.name for node in merged.graph.nodes] == ["x", "conv3", "act3", "output"]


def interior(x, margin):
    return x[:, :, margin:-margin, margin:-margin]


@pytest.mark.parametrize(
    ("model", "entry", "exit_", "kernel", "margin"),
    [
        (lambda: Residual(act=Linear), "x", "act2", (5, 5), 2),
        (lambda: Chain(act=Linear), "x", "act3", (9, 7), 3),
        (lambda: Sandwich(straight(3)), "x", "stem", None, 0),
    ],
)
def test_with_identity_activations_the_merged_net_is_the_original_away_from_the_border(
    model, entry, exit_, kernel, margin
):
    x = image(5 if kernel == (5, 5) else 3, 29, 31)
    gm = captured(model(), x)
    plan = plan_of((entry, exit_, "merge", kernel)) if kernel else Plan()
    _, merged = carry_out(gm, plan, x)
    with torch.no_grad():
        found, wanted = merged(x), gm(x)
    if margin:
        assert relative_error(interior(found, margin), interior(wanted, margin)) < SAME
        assert relative_error(found, wanted) > 1e-6  # the border does differ: the test can fail
    else:
        assert relative_error(found, wanted) < SAME


def test_without_inner_padding_the_merged_net_is_the_original_everywhere():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 5, 5, padding=2, stride=2),
        Linear(),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(5, 7, 3, dilation=2),
    ]
    x = image(3, 29, 31)
    gm = captured(nn.Sequential(*layers, nn.BatchNorm2d(7, eps=0.3), nn.ReLU()), x)
    plan = plan_of(("input_1", "_5", "merge", (15, 15)))
    _, merged = carry_out(gm, plan, x)
    with torch.no_grad():
        assert relative_error(merged(x), gm(x)) < SAME


def test_linearized_pads_once_at_the_entry_by_the_strided_sum():
    gm, x = toy("chain")
    linearized = linearize(gm, plan_of(("x", "act3", "merge", (9, 7))))
    (pad,) = [node for node in linearized.graph.nodes if node.target is F.pad]
    assert pad.args[1] == (3, 3, 4, 4)  # left, right, top, bottom: 1 + 2 * 1 and 1 + 1 + 2 * 1
    assert all(conv.padding == (0, 0) for conv in convolutions(linearized))
    expected = F.pad(x, (3, 3, 4, 4))
    for conv, norm in ((gm.conv1, gm.bn1), (gm.conv2, gm.bn2), (gm.conv3, nn.Identity())):
        expected = norm(F.conv2d(expected, conv.weight, conv.bias, conv.stride))
    with torch.no_grad():
        assert relative_error(linearized(x), F.relu(expected)) < SAME


def test_linearized_skips_are_cropped_to_meet():
    gm, x = toy("nested")
    plan = next(Plan((choice,)) for choice in every_choice(gm) if choice.kind == "merge" and choice.exit == "add_1")
    linearized, merged = carry_out(gm, plan, x)
    pads = [node.args[1] for node in linearized.graph.nodes if node.target is F.pad]
    assert (3, 3, 3, 3) in pads
    assert {(-2, -2, -2, -2), (-3, -3, -3, -3)} <= set(pads)
    (conv,) = convolutions(merged)
    assert conv.kernel_size == (7, 7)


def test_a_merge_may_need_asymmetric_padding():
    gm, x = toy("same_padded")
    plan = next(Plan((c,)) for c in every_choice(gm) if (c.kind, c.entry, c.exit) == ("merge", "x", "conv3"))
    _, merged = carry_out(gm, plan, x)
    (pad,) = [node for node in merged.graph.nodes if node.target is F.pad]
    # left, right, top, bottom: of conv1, of the padding before conv2, and twice that before conv3
    assert pad.args[1] == (1 + 0 + 2 * 2, 1 + 1 + 2 * 1, 1 + 0 + 2 * 1, 1 + 1 + 2 * 0)


def test_a_skip_over_an_even_kernel_keeps_its_tap():
    x = image(3, 29, 31)
    gm = captured(EvenSkip(), x)
    gm.act = Linear()
    plan = plan_of(("x", "add", "merge", (6, 6)))
    _, merged = carry_out(gm, plan, x)
    with torch.no_grad():
        assert relative_error(interior(merged(x), 3), interior(gm(x), 3)) < SAME


def test_a_merged_depthwise_chain_stays_depthwise():
    gm, x = toy("depthwise")
    _, merged = carry_out(gm, plan_of(("x", "second", "merge", (5, 5))), x)
    (conv,) = convolutions(merged)
    assert (conv.groups, conv.in_channels, conv.out_channels) == (5, 5, 10)


def test_a_one_channel_stem_is_merged_right():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 7, 3, bias=False), Linear(), nn.Conv2d(7, 5, 3))
    x = image(1)
    gm = captured(net, x)
    _, merged = carry_out(gm, plan_of(("input_1", "_2", "merge", (5, 5))), x)
    with torch.no_grad():
        assert relative_error(merged(x), gm(x)) < SAME
    assert convolutions(merged)[0].groups == 1


def test_dropping_a_residual_block_leaves_its_skip():
    gm, x = toy("nested")
    linearized, merged = carry_out(gm, plan_of(("x", "inner_act2", "drop")), x)
    with torch.no_grad():
        assert relative_error(merged(x), x + F.conv2d(x, gm.after.weight, gm.after.bias, padding=1)) < SAME
    assert isinstance(linearized.get_submodule(_target(linearized, "inner_act2")), nn.Identity)
    assert len(convolutions(merged)) == 1


def _target(gm, name):
    return next(node.target for node in gm.graph.nodes if node.name == name)


def test_everything_may_be_dropped():
    gm, x = toy("residual")
    _, merged = carry_out(gm, plan_of(("x", "act2", "drop")), x)
    assert torch.equal(merged(x), x)


def test_a_fit_starts_from_the_middle_of_the_merged_kernel():
    gm, x = toy("residual")
    _, full = carry_out(gm, plan_of(("x", "act2", "merge", (5, 5))), x)
    linearized, _ = carry_out(gm, plan_of(("x", "act2", "fit", (5, 5))), x)
    assert relative_error(convolutions(linearized)[0].weight, convolutions(full)[0].weight) < SAME
    small, _ = carry_out(gm, plan_of(("x", "act2", "fit", (1, 1))), x)
    assert convolutions(small)[0].kernel_size == (1, 1)


@pytest.mark.parametrize("name", ["depthwise", "even_skip", "same_padded"])
def test_a_fitted_convolution_is_known_by_its_operator_and_takes_new_weights(name):
    gm, x = toy(name)
    whole = {"depthwise": "second", "even_skip": "add", "same_padded": "conv3"}[name]
    plan = plan_of(("x", whole, "fit", (3, 3)))
    linearized, network = linearize(gm, plan), CapturedNetwork(gm)
    ((name, conv),) = solved_without_norm(linearized, plan).items()
    (slot,) = kind_of(plan.choices[0]).slots(plan.choices[0], network.piece(plan.choices[0]))
    assert (slot.entry, slot.node, slot.target) == ("x", whole, whole) == ("x", name, whole)
    operator = replace(slot.operator, weight=conv.weight.detach(), bias=conv.bias.detach())
    with torch.no_grad():
        assert relative_error(linearized(x), operator(x)) < SAME
        doubled = replace(operator, weight=2 * operator.weight, bias=2 * operator.bias)
        load_operator(GraphFacts(linearized), slot.node, doubled)
        assert relative_error(linearized(x), doubled(x)) < SAME
        assert relative_error(merge(linearized, plan)(x), linearized(x)) < SAME


def train_a_little(gm, x, steps=3):
    """A few optimiser steps with norms in training mode; returns the graph in evaluation mode."""
    gm.train()
    optimiser = torch.optim.SGD(gm.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(y.square().mean() for y in _as_list(gm(x))).backward()
        optimiser.step()
    return gm.eval()


def _as_list(result):
    return result if isinstance(result, list | tuple) else [result]


@pytest.mark.parametrize("name", sorted(TOYS))
def test_merge_is_exact_after_training_the_linearized_graph(name):
    gm, x = toy(name)
    plan = next(
        plan
        for seed in range(50)
        if (plan := random_plan(gm, np.random.default_rng(seed), GENEROUS)) and len(plan) > 0
        and any(choice.kind != "drop" for choice in plan)
    )  # fmt: skip
    linearized = linearize(gm, plan)
    before = outputs(linearized, x)
    train_a_little(linearized, x)
    after = outputs(linearized, x)
    assert any(not torch.allclose(a, b) for a, b in zip(before, after, strict=True))
    assert largest_error(outputs(merge(linearized, plan), x), after) < SAME


def test_a_graph_in_training_mode_is_merged_in_evaluation_mode_and_left_training():
    gm, x = toy("inverted")
    plan = plan_of(("x", "add", "merge", (3, 3)))
    linearized = linearize(gm, plan).train()
    merged = merge(linearized, plan)
    assert all(module.training for module in linearized.modules())
    assert largest_error(outputs(merged, x), outputs(linearized.eval(), x)) < SAME


def test_linearize_keeps_the_training_mode():
    gm, _ = toy("inverted")
    plan = plan_of(("x", "depthwise_2", "fit", (3, 3)))
    assert not any(module.training for module in linearize(gm, plan).modules())
    assert all(module.training for module in linearize(copy.deepcopy(gm).train(), plan).modules())


@pytest.mark.parametrize("name", ["inverted", "chain", "nested", "same_padded"])
def test_single_precision_is_as_exact_as_it_can_be(name):
    gm, x = toy(name)
    gm, x = gm.float(), x.float()
    for seed in range(5):
        plan = random_plan(gm, np.random.default_rng(seed), GENEROUS)
        linearized = linearize(gm, plan)
        merged = merge(linearized, plan)
        assert {parameter.dtype for parameter in merged.parameters()} <= {torch.float32}
        assert largest_error(outputs(merged, x), outputs(linearized, x)) < 1e-5


PADDED = {
    "in the middle": [nn.Conv2d(5, 7, 3), nn.ReLU(), nn.ZeroPad2d((1, 2, 3, 0)), nn.Conv2d(7, 5, 2)],
    "twice": [nn.ZeroPad2d(1), nn.ZeroPad2d((0, 1, 0, 2)), nn.Conv2d(5, 7, 3), nn.Conv2d(7, 5, 1)],
    "at the end": [nn.Conv2d(5, 7, 3), nn.Conv2d(7, 5, 1), nn.ReLU(), nn.ZeroPad2d((1, 0, 2, 0))],
    "after the last conv": [nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 5, 1), nn.ZeroPad2d((1, 0, 2, 0))],
    "cropping": [nn.Conv2d(5, 7, 3, padding=2), nn.ZeroPad2d((-1, 0, 0, -2)), nn.Conv2d(7, 5, 1), nn.ReLU()],
    "pooled": [
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d((2, 1), padding=(1, 0)),
    ],
}


@pytest.mark.parametrize("layers", PADDED.values(), ids=PADDED.keys())
def test_padding_of_its_own_moves_to_the_entry(layers):
    x = image()
    gm = captured(Sandwich(nn.Sequential(*copy.deepcopy(layers), nn.MaxPool2d(3, 1, 1))), x)
    choices = every_choice(gm)
    assert "merge" in {choice.kind for choice in choices}
    for choice in choices:
        carry_out(gm, Plan((choice,)), x)
    for seed in range(11):
        carry_out(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS), x)


def test_doubling_a_tensor_is_a_sum_too():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(10, 3, 3, padding=1)

        def forward(self, x):
            y = self.one(x)
            return self.two(torch.cat([y + y, y], 1)) + x

    x = image()
    gm = captured(Doubled(), x)
    choices = every_choice(gm)
    assert ("x", "add_1", "merge") in {(c.entry, c.exit, c.kind) for c in choices}
    for choice in choices:
        carry_out(gm, Plan((choice,)), x)


def test_a_norm_whose_convolution_feeds_another_layer_is_not_folded():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)

        def forward(self, x):
            y = self.conv(x)
            return torch.relu(self.norm(y)) * y

    x = image()
    gm = captured(Forked(), x)
    _, merged = carry_out(gm, Plan(), x)
    assert any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())


@pytest.mark.parametrize(
    "layers",
    [[nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, affine=False)], [nn.AvgPool2d(2, 1), nn.AvgPool2d(3)]],
    ids=["norms without weights", "pools"],
)
def test_spans_without_any_parameter_take_the_networks_type(layers):
    x = image()
    gm = captured(nn.Sequential(*layers), x)
    for choice in every_choice(gm):
        carry_out(gm, Plan((choice,)), x)


def test_linearizing_does_not_draw_random_numbers():
    gm, _ = toy("residual")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    plan = plan_of(("x", "act2", "fit", (3, 3)))
    merge(linearize(gm, plan), plan)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("model", [Residual, Inverted, NestedResidual, DepthwiseChain])
def test_fine_plans_merge_neighbouring_spans_side_by_side(model):
    x = image(5)
    gm = captured(nn.Sequential(model(), nn.Conv2d(10 if model is DepthwiseChain else 5, 5, 1), model()), x)
    for seed in range(5):
        carry_out(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS), x)


def test_the_linear_same_padded_net_is_the_original_inside():
    x = image(3, 29, 31)
    gm = captured(SamePadded(), x)
    gm.act1, gm.act2 = Linear(), Linear()
    plan = next(Plan((c,)) for c in every_choice(gm) if (c.kind, c.exit) == ("merge", "conv3") and c.entry == "x")
    _, merged = carry_out(gm, plan, x)
    with torch.no_grad():
        assert relative_error(interior(merged(x), 3), interior(gm(x), 3)) < SAME


DROPOUT = {
    "at the end": [nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 5, 1), nn.Dropout(0.3)],
    "before the activation": [nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1), nn.Dropout(0.3), nn.ReLU()],
    "after the activation": [nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1), nn.ReLU(), nn.Dropout2d(0.3)],
    "inside": [nn.Conv2d(5, 5, 3, padding=1), nn.Dropout(0.3), nn.Conv2d(5, 5, 1), nn.ReLU(), nn.ReLU6()],
    "first": [nn.Dropout(0.3), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 1)],
}


@pytest.mark.parametrize("layers", DROPOUT.values(), ids=DROPOUT.keys())
def test_dropout_anywhere_is_in_nobodys_way(layers):
    x = image()
    gm = captured(Sandwich(nn.Sequential(*copy.deepcopy(layers), nn.MaxPool2d(3, 1, 1))), x)
    for choice in every_choice(gm):
        linearized, merged = carry_out(gm, Plan((choice,)), x)
        assert {choice.entry, choice.exit} <= {node.name for node in linearized.graph.nodes}
        assert not any(isinstance(module, nn.Dropout | nn.Dropout2d) for module in merged.modules())
    for seed in range(11):
        carry_out(gm, random_plan(gm, np.random.default_rng(seed), GENEROUS), x)
