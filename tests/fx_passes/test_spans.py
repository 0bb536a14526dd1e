"""Candidate spans: sensible choices, honest refusals, limits, and the errors of looking one up."""

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import (
    TOYS,
    Backbone,
    Chain,
    Inverted,
    Sandwich,
    SqueezeExcite,
    TwoInputs,
    captured,
    image,
    largest_error,
    outputs,
    straight,
    toy,
)  # fmt: skip

from depthcomp_errors import PlanError
from fx_passes import Plan, SpanLimits, enumerate_spans, find_span, linearize, merge, random_plan
from fx_passes.kinds import kind_names
from fx_passes.module_paths import describe_modules, module_path
from fx_passes.operators import Role, image_shape, role

pytestmark = pytest.mark.whole

GENEROUS = SpanLimits(largest_mac_growth=1e9)


def spans_by_ends(gm, limits=None):
    return {(span.entry, span.exit): span for span in enumerate_spans(gm, limits)}


def kinds(span):
    return {choice.kind for choice in span.choices}


@pytest.mark.parametrize("name", sorted(TOYS))
def test_choices_make_sense(name):
    gm, _ = toy(name)
    nodes = {node.name: node for node in gm.graph.nodes}
    for span in enumerate_spans(gm, GENEROUS):
        same_shape = span.piece is not None and image_shape(nodes[span.exit]) == span.piece.in_shape
        for choice in span.choices:
            assert (choice.entry, choice.exit) == (span.entry, span.exit)
            if choice.kind == "drop":
                assert same_shape
            elif choice.kind == "merge":
                assert (choice.kernel == span.piece.operator.kernel) is not bool(choice.pruned)
            elif choice.kind == "fit":
                assert all(
                    k % 2 == 1 and k <= full for k, full in zip(choice.kernel, span.piece.operator.kernel, strict=True)
                )
            else:
                assert choice.kind == "narrow"
                assert all(0 < count < nodes[name].meta["tensor_meta"].shape[1] for name, count in choice.widths)
        assert len(set(span.choices)) == len(span.choices)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_collapsed_geometry_gives_the_spans_own_output_shape(name):
    gm, _ = toy(name)
    nodes = {node.name: node for node in gm.graph.nodes}
    for span in enumerate_spans(gm, GENEROUS):
        if span.piece is not None:
            batch, _, height, width = span.piece.in_shape
            shape = (batch, span.piece.operator.out_channels, *span.piece.operator.out_size((height, width)))
            assert image_shape(nodes[span.exit]) == shape
            assert span.piece.operator.weight.is_meta


@pytest.mark.parametrize("name", sorted(TOYS))
def test_no_choice_crosses_a_barrier(name):
    gm, _ = toy(name)
    roles = {node.name: role(gm, node) for node in gm.graph.nodes}
    for span in enumerate_spans(gm, GENEROUS):
        if span.choices:
            assert Role.BARRIER not in {roles[node] for node in span.nodes}


@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_span_has_choices_or_a_sentence_that_names_a_module_of_it(name):
    gm, _ = toy(name)
    nodes = {node.name: node for node in gm.graph.nodes}
    for span in enumerate_spans(gm):
        assert bool(span.choices) != bool(span.refusal)
        if span.refusal:
            inside = [nodes[name] for name in span.nodes]
            assert span.refusal.startswith((describe_modules(inside), *map(module_path, inside)))
            assert len(span.refusal.split()) > 4


BARRIERS = {
    "max_pool": (nn.MaxPool2d(3, 1, 1), "MaxPool2d is not a convolution"),
    "border_average": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "count_include_pad=False"),
    "ceil": (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode=True"),
    "circular": (nn.Conv2d(5, 5, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    "reflection": (nn.ReflectionPad2d(1), "ReflectionPad2d"),
    "softmax": (nn.Softmax(1), "Softmax"),
    "upsample": (nn.Upsample(scale_factor=2), "Upsample"),
    "group_norm": (nn.GroupNorm(1, 5), "GroupNorm"),
    "transposed": (nn.ConvTranspose2d(5, 5, 3), "ConvTranspose2d"),
    "constant_pad": (nn.ConstantPad2d(1, 0.5), "ConstantPad2d"),
}


@pytest.mark.parametrize("name", sorted(BARRIERS))
def test_barriers_end_spans_and_say_why(name):
    barrier, reason = BARRIERS[name]
    body = nn.Sequential(nn.Conv2d(5, 5, 1), nn.ReLU(), barrier, nn.Conv2d(5, 5, 1))
    gm = captured(Sandwich(body), image())
    refused = [span for span in enumerate_spans(gm, GENEROUS) if reason in span.refusal]
    assert [span.refusal.partition(":")[0] for span in refused] == ["body.2"]
    assert not [span for span in enumerate_spans(gm, GENEROUS) if "body_2" in span.nodes and span.choices]


@pytest.mark.parametrize("stride", [1, (1, 1)])
def test_rounding_up_is_in_nobodys_way_where_there_is_nothing_to_round(stride):
    body = nn.Sequential(nn.Conv2d(5, 5, 1), nn.ReLU(), nn.AvgPool2d(2, stride, ceil_mode=True))
    gm = captured(Sandwich(body), image())
    assert "merge" in kinds(spans_by_ends(gm, GENEROUS)["stem", "end"])


def test_the_gate_of_squeeze_and_excite_is_a_barrier():
    gm = captured(SqueezeExcite(), image(5))
    refusals = [span.refusal for span in enumerate_spans(gm)]
    assert any(refusal.startswith("squeeze: AdaptiveAvgPool2d is not a convolution") for refusal in refusals)


class Broadcast(nn.Module):
    """Adds a one-pixel image, a constant for each column, and concatenates over the height."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.conv2 = nn.Conv2d(3, 3, 1), nn.AvgPool2d((11, 13)), nn.Conv2d(3, 3, 1)
        self.columns = nn.Parameter(torch.randn(13))

    def forward(self, x):
        x = self.conv(x)
        x = x + self.pool(x)
        x = self.conv2(x * 2 + self.columns)
        return torch.cat([x, x], 2)


def test_sums_that_broadcast_and_odd_concatenations_are_refused_by_name():
    text = "\n".join(span.refusal for span in enumerate_spans(captured(Broadcast(), image())))
    assert "a sum that broadcasts" in text
    assert "add with a constant merges only if the constant is one fixed number per channel" in text
    assert "another axis than the channels" in text


def refusals(model, *inputs):
    """Return the refusals of a network's spans by the module that they name."""
    found = [span.refusal.partition(": ") for span in enumerate_spans(captured(model, *inputs)) if span.refusal]
    return {place: reason for place, _, reason in found}


class Upwards(nn.Module):
    """Two scales: pools, enlarges, pads to the size of the other scale, and joins both."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.conv = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 5, 2, 2), nn.Conv2d(5, 5, 3)
        self.low, self.end = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(10, 3, 3)

    def forward(self, x):
        high = self.down(x)
        low = self.up(torch.tanh(self.low(nn.functional.max_pool2d(torch.tanh(self.conv(high)), 2))))
        rows, columns = high.size(2) - low.size(2), high.shape[3] - low.shape[3]
        low = nn.functional.pad(low, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.end(torch.cat([high, low], 1))


def test_only_what_stands_at_convolutions_is_listed():
    found = refusals(Upwards(), image())
    assert set(found) == {"max_pool2d in the forward", "up"}


class Divisible(nn.Module):
    """Pads to a multiple of four pixels."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)

    def forward(self, x):
        x = self.one(x)
        return self.two(nn.functional.pad(x, (0, -x.size(3) % 4)))


def test_padding_by_computed_sizes_is_refused_as_that():
    (reason,) = refusals(Divisible(), image()).values()
    assert reason.startswith("pad is not one convolution: only zero padding of height and width by fixed")


def test_what_is_not_listed_can_still_be_asked_for():
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Softmax(1), nn.Hardshrink(), nn.Softmax(1), nn.ReLU()), image())
    assert not any(span.entry in ("_1", "_2") for span in enumerate_spans(gm))
    with pytest.raises(PlanError, match=r"\(_1, _2\] cannot be compressed: 2: Hardshrink is not a convolution"):
        find_span(gm, "_1", "_2")


class Gated(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.one, self.gate, self.two = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 3)
        self.multiply = multiply

    def forward(self, x):
        x = self.one(x)
        return self.two(self.multiply(x, torch.sigmoid(self.gate(x))))


@pytest.mark.parametrize("multiply", [torch.mul, lambda x, gate: x * gate, lambda x, gate: x.mul(gate)])
def test_a_gate_is_refused_as_one(multiply):
    assert refusals(Gated(multiply), image())["mul in the forward"] == (
        "a gate multiplies two computed tensors, which is no convolution"
    )


class Joined(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.one, self.two, self.end, self.join = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 7, 1), nn.Conv2d(12, 3, 1), join

    def forward(self, x):
        return self.end(self.join([self.one(x), self.two(x)]))


@pytest.mark.parametrize(
    "join",
    [
        lambda parts: torch.cat(parts, axis=1), lambda parts: torch.concat(parts, 1),
        lambda parts: torch.concatenate(tensors=parts, dim=-3), lambda parts: torch.concatenate(parts, axis=1),
    ],
)  # fmt: skip
def test_channels_are_concatenated_under_every_spelling(join):
    gm, x = captured(Joined(join), image()), image()
    (whole,) = (c for c in find_span(gm, "x", "end").choices if c.kind == "merge" and c.end == "original")
    plan = Plan.of([whole])
    assert largest_error(outputs(merge(linearize(gm, plan), plan), x), outputs(gm, x)) < 1e-9


def test_branches_of_different_strides_are_refused():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1, stride=2), nn.Conv2d(3, 3, (6, 7))

        def forward(self, x):
            return self.one(x) + self.two(x)

    found = refusals(Uneven(), image())
    assert found["add in the forward"] == "its branches have different strides (1, 1) and (2, 2)"


def test_a_whole_inverted_residual_can_be_merged_fitted_and_dropped():
    gm = captured(Inverted(), image(5))
    span = spans_by_ends(gm)["x", "add"]
    assert kinds(span) == {"merge", "fit", "drop"}
    assert span.piece.operator.kernel == (3, 3)
    assert {choice.kernel for choice in span.choices if choice.kind == "fit"} == {(1, 1), (3, 3)}


def test_multiply_adds_are_those_of_the_convolutions_for_the_whole_batch():
    gm = captured(Chain(), image())
    span = spans_by_ends(gm)["x", "act1"]
    assert span.piece.macs == 2 * 11 * 13 * (5 * 3 * 9) + 2 * 5 * 11 * 13  # the norm counts one per value


def test_a_merge_may_not_multiply_the_work_beyond_the_limit():
    gm = captured(Inverted(5, 7), image(5))
    strict = SpanLimits(largest_mac_growth=0.5)
    for span in enumerate_spans(gm, strict):
        for choice in span.choices:
            if choice.kind != "drop":
                taps = (
                    choice.kernel[0]
                    * choice.kernel[1]
                    * span.piece.operator.weight.shape[1]
                    * span.piece.operator.out_channels
                )
                assert 2 * 11 * 13 * taps <= 0.5 * span.piece.macs


def test_kernel_and_length_limits_are_respected():
    gm = captured(straight(7, 3), image())
    limits = SpanLimits(longest_span=3, largest_kernel=5, largest_mac_growth=1e9)
    spans = enumerate_spans(gm, limits)
    assert max(span.stop - span.start for span in spans) == 3
    assert max(max(c.kernel) for span in spans for c in span.choices if c.kind != "drop") == 5
    whole = {span.stop - span.start for span in spans for c in span.choices if c.kind == "merge" and not c.pruned}
    assert whole == {2}


@pytest.mark.parametrize("skips", [True, False])
def test_new_kernels_smaller_than_their_stride_are_left_out_on_request(skips):
    body = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(), nn.Conv2d(7, 7, 3, stride=2)
    )
    spans = enumerate_spans(captured(body, image()), SpanLimits(largest_mac_growth=1e9, skips_pixels=skips))
    found = {(span.piece.operator.stride[0], c.kernel[0]) for span in spans for c in span.choices if c.kind != "drop"}
    skipping = {(stride, kernel) for stride, kernel in found if kernel < stride}
    assert skipping == ({(2, 1), (4, 1), (4, 3)} if skips else set())
    assert {(1, 1), (2, 3), (4, 5), (4, 7)} <= found


def test_a_kernel_smaller_than_its_stride_is_offered_where_the_network_has_such():
    body = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1, stride=2))
    spans = enumerate_spans(captured(body, image()), SpanLimits(skips_pixels=False))
    assert {c.kernel for span in spans for c in span.choices if c.kind != "drop"} == {(1, 1)}


def test_candidates_grow_linearly_with_depth():
    counts = [len(enumerate_spans(captured(straight(depth, 3), image()))) for depth in (20, 40, 60)]
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_too_expensive_spans_say_so():
    body = nn.Sequential(nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 7, 1))
    gm = captured(Sandwich(body), image())
    refusals = [span.refusal for span in enumerate_spans(gm, SpanLimits(largest_mac_growth=0.01)) if span.refusal]
    expected = "cannot be merged or fitted, as one convolution would cost more than 0.01 times"
    assert any(expected in refusal for refusal in refusals)


def test_find_span_knows_spans_of_any_length():
    gm = captured(straight(11, 3), image())
    span = find_span(gm, "input_1", "_21")
    assert span.stop - span.start == 11
    assert "merge" in kinds(span)


def test_find_span_refuses_names_that_are_no_cuts():
    gm = captured(Chain(), image())
    with pytest.raises(PlanError, match="no tensor 'nowhere'; check that the plan was made for this network"):
        find_span(gm, "x", "nowhere")
    for ends in (("bn1", "act2"), ("act2", "act1"), ("act1", "act1")):
        with pytest.raises(PlanError, match=rf"no span from '{ends[0]}' to '{ends[1]}': the first must come before"):
            find_span(gm, *ends)


@pytest.mark.parametrize("names", [(), "merge", ("merge", 3)])
def test_limits_refuse_what_names_no_kind(names):
    with pytest.raises(PlanError, match=r"kinds \(=.*\) must be a tuple of names of kinds, at least one, or None"):
        SpanLimits(kinds=names)


def test_find_span_names_the_barrier_in_the_middle():
    body = nn.Sequential(nn.Conv2d(5, 5, 1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(5, 5, 1))
    gm = captured(Sandwich(body), image())
    with pytest.raises(PlanError, match=r"\(stem, end\] cannot be compressed: body.1: MaxPool2d is not"):
        find_span(gm, "stem", "end")


def test_find_span_says_why_a_span_has_no_choices():
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()), image())
    with pytest.raises(
        PlanError, match=r"cannot be merged or fitted, as it is one 1x1 layer already; cannot be dropped"
    ):
        find_span(gm, "input_1", "_1")


@pytest.mark.parametrize("name", sorted(TOYS))
def test_random_plans_repeat_for_a_seed_and_never_overlap(name):
    gm, _ = toy(name)
    for seed in range(11):
        plan = random_plan(gm, np.random.default_rng(seed))
        assert plan == random_plan(gm, np.random.default_rng(seed))
        rewritten = [node for choice in plan for node in find_span(gm, choice.entry, choice.exit).nodes]
        assert len(rewritten) == len(set(rewritten))


def test_random_plans_use_every_kind_on_every_level():
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), Inverted(), Inverted()), image())
    plans = [random_plan(gm, np.random.default_rng(seed)) for seed in range(40)]
    assert {choice.kind for plan in plans for choice in plan} == set(kind_names())
    assert Plan() in plans or any(len(plan) == 1 for plan in plans)
    exits = {choice.exit for plan in plans for choice in plan}
    assert {"add", "add_1"} <= exits
    assert exits & {"_2_depthwise_2", "_2_project_1"}


def test_random_plans_reach_both_inputs_and_all_outputs():
    two = captured(TwoInputs(), image(3), image(2))
    many = captured(Backbone(), image())
    for gm, wanted in ((two, {"left2", "end"}), (many, {"stages_1_3", "stages_2_3"})):
        plans = [random_plan(gm, np.random.default_rng(seed)) for seed in range(30)]
        assert wanted <= {choice.exit for plan in plans for choice in plan}
