"""Operators are priced as they really run, and the solver's problem adds up to what its plans hold."""

import math
import zlib
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torchvision
from folded_network import network_of
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock
from torchvision.ops.misc import Permute

from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from dp_solver import frontier
from fx_passes import CapturedNetwork, Plan, SpanLimits, capture, enumerate_spans, linearize, merge
from fx_passes.kinds import kind_names, kind_of
from fx_passes.merge import fold_batch_norms
from fx_passes.operators import Role, called_module, role

pytestmark = pytest.mark.whole


def traced_convolutions(model, *shape):
    """The oracle: every convolution's geometry and true input size, by hooks on the user's own model."""
    found = []
    hooks = [
        module.register_forward_hook(lambda conv, args, _: found.append((conv, tuple(args[0].shape))))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(*shape))
    for hook in hooks:
        hook.remove()
    return [(geometry(conv), shape) for conv, shape in found]


def geometry(conv):
    (rows, columns) = conv.padding
    return (
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, (rows, rows, columns, columns),
        conv.dilation, conv.groups,
    )  # fmt: skip


def geometry_of(signature):
    s = signature
    return s.in_channels, s.out_channels, s.kernel, s.stride, s.padding, s.dilation, s.groups


def price(signature):
    """A latency that no two signatures share: any mix-up shows in a sum."""
    return 0.01 + zlib.crc32(signature.key.encode()) / 2**32


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2(width_mult=0.5)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_every_convolution_at_its_true_input_size(name, request):
    model, shape = request.getfixturevalue(name), (2, 3, 96, 64)
    kept = Pricing(network_of(model, *shape)).kept.values()
    wanted = Counter(traced_convolutions(model, *shape))
    found = Counter((geometry_of(s), (s.batch, s.in_channels, *s.in_size)) for s in kept if s.op == "conv")
    assert found == wanted


def test_sizes_after_the_max_pool(resnet):
    """Traced without it, every layer of a ResNet would be timed at four times its area."""
    kept = Pricing(network_of(resnet, 1, 3, 224, 224)).kept
    assert kept["bn1"].in_size == (224, 224)
    assert {s.in_size for name, s in kept.items() if name.startswith("layer1")} == {(56, 56)}
    assert {s.in_size for name, s in kept.items() if name.startswith("layer4")} == {(14, 14), (7, 7)}


def test_mobilenet_activates_and_adds_only_where_it_does(mobilenet):
    pricing = Pricing(network_of(mobilenet, 1, 3, 64, 64))
    blocks = [block for block in mobilenet.features if isinstance(block, InvertedResidual)]
    depthwise = [s for s in pricing.kept.values() if s.groups > 1]
    linear = [s for s in pricing.kept.values() if s.activation is None and s.op == "conv"]
    assert len(depthwise) == len(linear) == len(blocks) == 17
    assert all(s.activation == "relu6" and not s.residual for s in depthwise)
    assert all(s.kernel == (1, 1) for s in linear)
    in_order = [s.residual for s in linear]
    assert in_order == [block.use_res_connect for block in blocks]
    assert not any(s.residual for s in pricing.kept.values() if s.activation)


def test_linear_layers_at_the_pixels_that_they_read():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), Permute([0, 2, 3, 1]), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8),
        nn.Flatten(), nn.Linear(8 * 6 * 4, 5),
    )  # fmt: skip
    kept = [s for s in Pricing(network_of(net.eval(), 2, 3, 8, 6)).kept.values() if s.op == "linear"]
    assert [s.key for s in kept] == [
        "linear 2x8x6x4 -> 16 k1x1 s1x1 p0,0,0,0 d1x1 g1 gelu fp32",
        "linear 2x16x6x4 -> 8 k1x1 s1x1 p0,0,0,0 d1x1 g1 fp32",
        "linear 2x192x1x1 -> 5 k1x1 s1x1 p0,0,0,0 d1x1 g1 fp32",
    ]


def test_a_norm_behind_a_linear_layer_has_its_activation():
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))
    kept = Pricing(network_of(net.eval(), 1, 3, 8, 6)).kept.values()
    assert [(s.op, s.activation) for s in kept] == [("linear", None), ("scale", "relu"), ("conv", None)]


def test_slots_of_linear_layers_are_linear_in_bodies():
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    network = network_of(net.eval(), 1, 3, 8, 8)
    choice = network.spans(SpanLimits(kinds=("narrow",)))[0].choices[0]
    body = kind_of(choice).body(choice, network.piece(choice))
    found = network.workload.of_body(body)
    assert [(operator.op, operator.in_shape) for operator in found] == [
        ("linear", (1, 8, 3, 8)), ("linear", (1, 64, 3, 8))
    ]  # fmt: skip


def test_fewer_channels_make_smaller_linear_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 4, 64), nn.ReLU(), nn.Linear(64, 5))
    network = network_of(net.eval(), 1, 3, 8, 6)
    spans = network.spans(SpanLimits(kinds=("narrow",)))
    found = {c.choice.widths[0][1]: [s.key for s in c.signatures] for c in Pricing(network).candidates(spans)}
    assert found[16][-2:] == [
        "linear 1x192x1x1 -> 16 k1x1 s1x1 p0,0,0,0 d1x1 g1 relu fp32",
        "linear 1x16x1x1 -> 5 k1x1 s1x1 p0,0,0,0 d1x1 g1 fp32",
    ]


def test_resnet_activates_and_adds_only_where_it_does(resnet):
    kept = Pricing(network_of(resnet, 1, 3, 64, 64)).kept
    blocks = [block for block in resnet.modules() if isinstance(block, BasicBlock)]
    second = [s for name, s in kept.items() if name.endswith("bn2")]
    first = [s for name, s in kept.items() if name.endswith("bn1")]
    short = [s for name, s in kept.items() if "downsample" in name]
    assert (len(first), len(second), len(short)) == (9, 8, 3)
    assert all(s.activation == "relu" and not s.residual for s in first)
    assert sum(s.residual for s in [*second, *short]) == len(blocks)
    assert all((s.activation == "relu") == s.residual for s in [*second, *short])
    plain = [s for s, block in zip(second, blocks, strict=True) if block.downsample is None]
    assert all(s.residual for s in plain)


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_each_sum_is_priced_once(name, request):
    network = network_of(request.getfixturevalue(name), 1, 3, 64, 64)
    sums = sum(role(network.gm, node) is Role.ADD for node in network.nodes.values())
    assert sum(s.residual for s in Pricing(network).kept.values()) == sums > 0


class Scaled(nn.Module):
    """A scale after a norm of a convolution, and a lone one behind an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
        self.gamma, self.pool = nn.Parameter(torch.randn(5, 1, 1)), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.act(self.norm(self.conv(x)) * self.gamma))
        return x * self.gamma


def test_a_scale_costs_nothing_behind_a_convolution_and_as_much_as_a_norm_alone():
    gm = capture(Scaled(), torch.zeros(2, 3, 9, 11))
    conv, alone = Pricing(CapturedNetwork(gm)).kept.values()
    assert (conv.op, conv.activation) == ("conv", "relu")
    assert (alone.op, alone.in_channels, alone.in_size) == ("scale", 5, (3, 4))
    fold_batch_norms(gm)
    assert list(Pricing(CapturedNetwork(gm)).kept.values()) == [conv, alone]


def test_norms_cost_nothing_whether_folded_or_not(mobilenet):
    captured = CapturedNetwork(capture(mobilenet.eval(), torch.zeros(1, 3, 64, 64)))
    folded = network_of(mobilenet, 1, 3, 64, 64)
    assert sorted(Pricing(captured).kept.values()) == sorted(Pricing(folded).kept.values())


class Tails(nn.Module):
    """Convolutions that are read twice, by a pooling, after dropout, and a norm that follows no convolution."""

    def __init__(self):
        super().__init__()
        self.twice, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.pool, self.norm = nn.AvgPool2d(2), nn.BatchNorm2d(5)
        self.same = nn.Conv2d(5, 7, (1, 3), padding="same", dilation=(1, 2))
        self.drop, self.end = nn.Dropout(), nn.Hardswish()

    def forward(self, x):
        x = self.twice(x)
        x = self.norm(self.pool(self.act(x) + x))
        return self.end(self.drop(self.same(x)))


def test_special_cases():
    kept = Pricing(network_of(Tails(), 2, 3, 9, 11)).kept
    assert kept.keys() == {"twice", "pool", "norm", "same"}
    assert (kept["twice"].activation, kept["twice"].residual) == (None, False)  # two readers: nothing is fused
    assert (kept["pool"].op, kept["pool"].kernel, kept["pool"].in_size) == ("avg_pool", (2, 2), (9, 11))
    assert (kept["norm"].op, kept["norm"].in_size) == ("scale", (4, 5))
    same = kept["same"]
    assert (same.kernel, same.dilation, same.padding) == ((1, 3), (1, 2), (0, 0, 2, 2))
    assert same.activation == "hardswish"  # dropout does nothing in evaluation


def test_a_one_channel_stem_is_not_depthwise():
    kept = Pricing(network_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), 1, 1, 7, 7)).kept
    assert kept["_0"].groups == 1


class Toy(nn.Module):
    """An inverted residual, a max-pool, a block with a projection, and a linear end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.inverted = InvertedResidual(6, 6, 1, 2)
        self.pool = nn.MaxPool2d(2)
        self.long = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, stride=2, padding=1))
        self.short, self.act = nn.Conv2d(6, 8, 1, stride=2), nn.ReLU()
        self.end = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        x = self.pool(self.inverted(self.stem(x)))
        return self.end(self.act(self.long(x) + self.short(x)))


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return network_of(Toy(), 2, 3, 17, 13)


@pytest.fixture(scope="module")
def priced(toy):
    pricing = Pricing(toy)
    return pricing, pricing.candidates(enumerate_spans(toy, DEFAULT_LIMITS))


def test_candidates_have_the_sizes_of_the_spans_that_they_replace(toy, priced):
    shapes = {name: tuple(node.meta["tensor_meta"].shape) for name, node in toy.nodes.items() if node.op != "output"}
    _, candidates = priced
    for candidate in candidates:
        entry, exit_ = shapes[candidate.span.entry], shapes[candidate.span.exit]
        if candidate.choice.kind == "drop":
            assert candidate.signatures == ()
            assert entry == exit_
            continue
        if candidate.choice.kind == "narrow":
            assert candidate.signatures[0].in_channels == entry[1]
            assert candidate.signatures[-1].out_channels == exit_[1]
            continue
        (s,) = candidate.signatures
        assert (s.batch, s.in_channels) == entry[:2]
        assert (s.batch, s.out_channels, *s.out_size) == exit_
        assert s.kernel == candidate.choice.kernel
    assert {candidate.choice.kind for candidate in candidates} == set(kind_names())


def test_a_candidate_has_the_epilogue_of_its_end(toy, priced):
    _, candidates = priced
    for candidate in candidates:
        if candidate.signatures and toy.roles[candidate.span.exit] is Role.ACTIVATION:
            kind = type(called_module(toy.gm, toy.nodes[candidate.span.exit])).__name__.lower()
            assert [s.activation for s in candidate.signatures] == [kind]
    by_span = {(c.span.entry, c.span.exit): s for c in candidates for s in c.signatures}
    inside = next(s for (_, exit_), s in by_span.items() if exit_ == "inverted_conv_3")
    assert inside.residual  # the whole branch becomes one convolution, and the skip is added to it
    whole = next(s for (_, exit_), s in by_span.items() if exit_ == "add")
    assert not whole.residual  # the skip is part of the convolution


@pytest.fixture(scope="module")
def with_other_ends(toy):
    """All candidates, by their choices: with layers pruned and with other ends, too."""
    candidates = Pricing(toy).candidates(enumerate_spans(toy, SpanLimits()))
    return {candidate.choice: candidate for candidate in candidates}


def test_candidates_are_priced_as_the_merged_network_is(toy, with_other_ends):
    """The oracle merges the plan of this choice alone, and prices the operators that are there then."""
    kept = Pricing(toy).kept
    for choice, candidate in with_other_ends.items():
        plan = Plan((choice,))
        merged = CapturedNetwork(merge(linearize(toy, plan), plan))
        rest = [signature for name, signature in kept.items() if name not in candidate.span.nodes]
        assert Counter(Pricing(merged).kept.values()) == Counter([*rest, *candidate.signatures]), choice


@pytest.mark.parametrize("kind", ["merge", "fit"])
def test_an_inserted_activation_is_priced(toy, with_other_ends, kind):
    inserted = [c for c in with_other_ends if c.kind == kind and c.end == "inserted"]
    assert inserted
    for choice in inserted:
        candidate = with_other_ends[choice]
        inside = [name for name in candidate.span.nodes if toy.roles[name] is Role.ACTIVATION]
        wanted = type(called_module(toy.gm, toy.nodes[inside[-1]])).__name__.lower()
        (signature,), (plain,) = candidate.signatures, with_other_ends[replace(choice, end="original")].signatures
        assert plain.activation is None
        assert signature == replace(plain, activation=wanted, residual=False)  # a sum behind it is not fused


@pytest.mark.parametrize("kind", ["merge", "fit"])
def test_a_removed_activation_is_not_priced(with_other_ends, kind):
    removed = [c for c in with_other_ends if c.kind == kind and c.end == "none"]
    assert removed
    for choice in removed:
        (signature,) = with_other_ends[choice].signatures
        (plain,) = with_other_ends[replace(choice, end="original")].signatures
        assert plain.activation is not None
        assert signature == replace(plain, activation=None)


def test_what_must_be_measured_each_once(priced):
    pricing, candidates = priced
    wanted = pricing.signatures(candidates)
    assert wanted == sorted(set(wanted))
    assert set(wanted) == {*pricing.kept.values(), *(s for c in candidates for s in c.signatures)}


def test_kept_sums_and_savings(toy, priced):
    pricing, candidates = priced
    assert pricing.kept_ms(toy.nodes, price) == pytest.approx(sum(price(s) for s in pricing.kept.values()), rel=1e-12)
    for candidate in candidates:
        kept = sum(price(pricing.kept[name]) for name in candidate.span.nodes if name in pricing.kept)
        new = sum(map(price, candidate.signatures))
        assert pricing.saving_ms(candidate, price) == pytest.approx(kept - new, abs=1e-12)


def test_convolutions_are_counted(toy, priced):
    pricing, candidates = priced
    spans = {c.span.exit: c.span for c in candidates if c.span.entry == "stem_2"}
    assert pricing.convolutions(spans["add"]) == 3
    assert spans.keys() >= {"add"}


@pytest.fixture(scope="module")
def problem(toy, priced):
    pricing, candidates = priced
    losses = {c.choice: 0.01 + zlib.crc32(str(c.choice).encode()) / 2**32 for c in candidates}
    return losses, frontier(pricing.problem(toy.tree, candidates, losses, price))


def assert_plans_add_up(pricing, candidates, losses, plans):
    """By hand: what the plan's choices cost, and every operator that no choice covers."""
    by_choice = {candidate.choice: candidate for candidate in candidates}
    assert len(plans) > 5
    for index in range(len(plans)):
        chosen = [key for key in plans.plan(index) if key is not None]
        covered = Counter(name for choice in chosen for name in by_choice[choice].span.nodes)
        assert not covered or max(covered.values()) == 1
        new = [s for choice in chosen for s in by_choice[choice].signatures]
        kept = [s for name, s in pricing.kept.items() if name not in covered]
        assert plans.costs[index] == pytest.approx(sum(map(price, [*new, *kept])), rel=1e-9)
        assert plans.losses[index] == pytest.approx(sum(losses[choice] for choice in chosen), abs=1e-9)


def test_every_plan_costs_what_its_operators_cost(priced, problem):
    assert_plans_add_up(*priced, *problem)


def test_the_dearest_plan_keeps_everything(priced, problem):
    pricing, _ = priced
    _, plans = problem
    assert set(plans.plan(len(plans) - 1)) == {None}
    assert plans.costs[-1] == pytest.approx(sum(map(price, pricing.kept.values())), rel=1e-12)
    assert plans.losses[-1] == 0.0


def test_choices_without_a_loss_are_not_offered(toy, priced):
    pricing, candidates = priced
    plans = frontier(pricing.problem(toy.tree, candidates, {}, price))
    assert len(plans) == 1
    one = next(c for c in candidates if pricing.saving_ms(c, price) > 0)
    plans = frontier(pricing.problem(toy.tree, candidates, {one.choice: 0.3}, price))
    assert [key for key in plans.plan(0) if key is not None] == [one.choice]
    assert plans.costs[1] - plans.costs[0] == pytest.approx(pricing.saving_ms(one, price), abs=1e-9)


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_whole_networks_add_up(name, request):
    network = network_of(request.getfixturevalue(name), 1, 3, 64, 64)
    pricing = Pricing(network)
    plans = frontier(pricing.problem(network.tree, [], {}, price))
    assert plans.costs.tolist() == [pytest.approx(math.fsum(map(price, pricing.kept.values())), rel=1e-9)]


class Pyramid(nn.Module):
    """A residual trunk whose stages laterals read, summed from coarse to fine; every level of it is returned."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.stages = nn.ModuleList(nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6)) for _ in range(3))
        self.laterals = nn.ModuleList(nn.Conv2d(6, 5, 1) for _ in range(3))
        self.smooth = nn.ModuleList(nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU()) for _ in range(3))

    def forward(self, x):
        fine = self.stages[0](self.stem(x))
        middle = self.stages[1](self.pool(fine))
        coarse = self.stages[2](self.pool(middle))
        top = self.laterals[2](coarse)
        between = self.laterals[1](middle) + self.up(top)
        bottom = self.laterals[0](fine) + self.up(between)
        return self.smooth[0](bottom), self.smooth[1](between), self.smooth[2](top), coarse


@pytest.fixture(scope="module")
def pyramid():
    torch.manual_seed(0)
    return network_of(Pyramid(), 2, 3, 16, 12)


def test_tangled_levels_hold_parallel_regions_and_each_operator_once(pyramid):
    tangled = [unit for level in pyramid.levels for unit in level.units if unit.tangled]
    assert any(inner.branches for unit in tangled for branch in unit.branches for inner in branch.units)
    entries = Counter(branch.entry for unit in tangled for branch in unit.branches)
    assert max(entries.values()) > 1  # several levels start at one tensor
    pricing = Pricing(pyramid)
    plans = frontier(pricing.problem(pyramid.tree, [], {}, price))
    assert plans.costs.tolist() == [pytest.approx(math.fsum(map(price, pricing.kept.values())), rel=1e-12)]


def test_each_choice_of_a_tangled_network_saves_what_it_says(pyramid):
    pricing, tree = Pricing(pyramid), pyramid.tree
    candidates = pricing.candidates(enumerate_spans(pyramid))
    assert {c.span.nodes[-1] for c in candidates} >= {"stages_2_0_relu_1", "smooth_1_1"}
    whole = math.fsum(map(price, pricing.kept.values()))
    for candidate in candidates:
        plans = frontier(pricing.problem(tree, candidates, {candidate.choice: -1.0}, price))
        (index,) = [i for i in range(len(plans)) if plans.plan(i).count(candidate.choice) == 1]
        covered = [price(pricing.kept[name]) for name in candidate.span.nodes if name in pricing.kept]
        new = sum(map(price, candidate.signatures))
        assert pricing.saving_ms(candidate, price) == pytest.approx(math.fsum(covered) - new, abs=1e-12)
        assert plans.costs[index] == pytest.approx(whole - math.fsum(covered) + new, rel=1e-9)


def test_every_plan_of_a_tangled_network_costs_what_its_operators_cost(pyramid):
    pricing = Pricing(pyramid)
    candidates = pricing.candidates(enumerate_spans(pyramid))
    losses = {c.choice: 0.01 + zlib.crc32(str(c.choice).encode()) / 2**32 for c in candidates}
    plans = frontier(pricing.problem(pyramid.tree, candidates, losses, price))
    assert_plans_add_up(pricing, candidates, losses, plans)
