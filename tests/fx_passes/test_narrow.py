"""Narrow: the layers of a span stay, and channels that live inside it are fewer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_nets import networks
from test_channels import unread
from test_random_networks import examples
from torch import nn
from toy_nets import TOYS, captured, frozen_copy, image, is_unchanged, largest_error, outputs, toy

from depthcomp_errors import PlanError
from fx_passes import CapturedNetwork, Narrow, Plan, SpanLimits, capture, linearize, merge, random_plan
from fx_passes.kinds import decode_choice, kind_of, kinds
from fx_passes.kinds.narrow import _removed

SAME = 1e-9  # of the largest value, in float64
ONLY = SpanLimits(kinds=("narrow",), longest_span=20)


def narrows(network):
    return [choice for span in network.spans(ONLY) for choice in span.choices]


def reasons_by_layer(network):
    (kind,) = kinds(ONLY.kinds)
    return {network.words([name]): why for name, why in kind.left_out(network, ONLY)}


def narrow_to(network, tensor, count, kept=None):
    """Return the smallest span's choice that keeps so many channels of one tensor."""
    places = [
        place
        for place, inner in network.inner_channels.items()
        if [family.tensor for family in inner.families] == [tensor]
    ]
    return Narrow(*places[0], ((tensor, count),), () if kept is None else (tuple(kept),))


class SqueezeExcited(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.back = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        y = torch.relu(self.deep(torch.relu(self.wide(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.back(y * gate)


class Parallel(nn.Module):
    """Branches joined by a concatenation that one layer reads, as in an Inception block."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 1)
        self.two = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 3, padding=1))
        self.act, self.back = nn.PReLU(40), nn.Conv2d(40, 5, 3)

    def forward(self, x):
        return self.back(self.act(torch.cat([self.one(x), self.two(x)], 1)))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.norm, self.back = nn.Conv2d(3, 24, 1), nn.GroupNorm(4, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        return self.back(self.norm(self.wide(x)))


NETS = {
    "plain chain": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 5, 1)
    ),
    "depthwise with a multiplier": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=16), nn.BatchNorm2d(32), nn.ReLU6(),
        nn.Conv2d(32, 5, 1),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 5, 1)
    ),
    "linear layers": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 24), nn.ReLU(),
        nn.Linear(24, 5),
    ),
    "squeeze and excitation": SqueezeExcited,
    "parallel branches": Parallel,
    "layers by channel": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.PReLU(16), nn.InstanceNorm2d(16), nn.Conv2d(16, 5, 3)
    ),
}  # fmt: skip


def network_of(name):
    gm = captured(NETS[name](), image()) if name in NETS else toy(name)[0]
    return CapturedNetwork(gm), image() if name in NETS else toy(name)[1]


@pytest.mark.parametrize("name", [*sorted(TOYS), *NETS])
def test_a_narrow_network_is_the_one_whose_layers_read_nothing_of_the_removed_channels(name):
    network, x = network_of(name)
    choices = narrows(network)
    assert choices or name not in NETS
    for choice in choices[:: len(choices) // 20 + 1]:
        plan, before = Plan((choice,)), frozen_copy(network.gm)
        removed = _removed(choice, network.piece(choice))
        narrow = linearize(network, plan)
        wanted = outputs(unread(network.gm, network.channels, removed), x)
        assert largest_error(outputs(narrow, x), wanted) < SAME, choice
        assert largest_error(outputs(merge(narrow, plan), x), wanted) < SAME, choice
        assert is_unchanged(network.gm, before)


@pytest.mark.parametrize("name", NETS)
def test_all_channels_are_the_identity(name):
    network, x = network_of(name)
    for choice in narrows(network):
        families = network.inner_channels[choice.entry, choice.exit].families
        whole = replace(choice, widths=tuple((family.tensor, len(family.ids)) for family in families))
        assert largest_error(outputs(linearize(network, Plan((whole,))), x), outputs(network.gm, x)) == 0


def test_each_tensor_keeps_the_numbers_of_channels_that_a_choice_says():
    network, _ = network_of("parallel branches")
    for choice in narrows(network):
        narrow = CapturedNetwork(linearize(network, Plan((choice,))))
        for tensor, count in choice.widths:
            assert narrow.shape(tensor)[1] == count


def test_widths_are_about_eighths_in_multiples_of_eight_and_hold_those_of_32():
    net = nn.Sequential(nn.Conv2d(3, 96, 1), nn.ReLU(), nn.Conv2d(96, 20, 1), nn.ReLU(), nn.Conv2d(20, 5, 1))
    network = CapturedNetwork(captured(net, image()))
    alone = [choice.widths for choice in narrows(network) if len(choice.widths) == 1]
    assert [count for ((_, count),) in alone if count > 16] == [80, 72, 64, 48, 32, 24]
    assert {count for ((tensor, count),) in alone if network.shape(tensor)[1] == 20} == {8, 16}


@pytest.mark.parametrize("channels", [32, 64, 96, 144, 192, 240, 384, 480, 672, 960, 1152, 2048])
def test_seven_widths_at_most_are_offered_in_blocks_of_kernels(channels):
    net = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 5, 1))
    counts = [count for choice in narrows(CapturedNetwork(captured(net, image()))) for _, count in choice.widths]
    assert counts == sorted(set(counts), reverse=True)
    assert len(counts) == min(channels // 8 - 1, 7)
    block = 32 if channels >= 384 else 8
    assert not any(count % block for count in counts)


def test_whole_groups_go():
    network, _ = network_of("groups")
    assert {count % 8 for choice in narrows(network) for _, count in choice.widths} == {0}
    choice = narrows(network)[0]
    torn = replace(choice, widths=((choice.widths[0][0], 12),))
    assert "8 more" in kind_of(choice).check(torn, network.piece(choice))


def test_a_row_of_layers_is_narrowed_together_or_one_by_one():
    network, _ = network_of("plain chain")
    assert {tuple(name for name, _ in choice.widths) for choice in narrows(network)} == {
        ("_2",), ("_4",), ("_2", "_4")
    }  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_where_no_kind_merges_no_span_is_refused_for_not_merging(name):
    network, _ = network_of(name)
    assert all(span.choices for span in network.spans(ONLY))


def test_channels_that_a_residual_sum_carries_on_stay():
    network = CapturedNetwork(toy("residual")[0])
    sums = {name for name in network.nodes if name.startswith("add")}
    assert sums
    for inner in network.inner_channels.values():
        assert all(sums.isdisjoint(family.nodes) for family in inner.families)


def test_channels_that_are_mixed_stay_and_the_reason_names_the_layer():
    network = CapturedNetwork(captured(Mixed(), image()))
    assert narrows(network) == []
    assert reasons_by_layer(network) == {
        "wide": "its channels stay, as norm mixes them", "back": "its channels stay, as the network returns them"
    }  # fmt: skip


class Joined(nn.Module):
    """Branches of many and of few channels, joined by a concatenation."""

    def __init__(self, few):
        super().__init__()
        self.one, self.two, self.back = nn.Conv2d(3, 64, 1), nn.Conv2d(3, few, 1), nn.Conv2d(64 + few, 5, 1)

    def forward(self, x):
        return self.back(torch.relu(torch.cat([self.one(x), self.two(x)], 1)))


def test_tensors_with_few_channels_keep_them_beside_narrower_ones():
    network = CapturedNetwork(captured(Joined(8), image()))
    assert {name for choice in narrows(network) for name, _ in choice.widths} == {"one"}
    assert len(narrows(network)) == 7
    assert "there are 8, too few for a smaller width" in reasons_by_layer(network)["two"]
    both = narrows(CapturedNetwork(captured(Joined(48), image())))
    assert {tuple(name for name, _ in choice.widths) for choice in both} == {("one", "two")}


class LastAxis(nn.Module):
    """A convolution that reads the channels of a linear layer along another axis than it makes them."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv, self.back = nn.Linear(11, 32), nn.Conv2d(3, 32, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x):
        return self.back(torch.relu(self.conv(torch.relu(self.linear(x)))))


def test_channels_along_another_axis_stay():
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    network = CapturedNetwork(capture(LastAxis().double().eval(), x))
    assert "works along another axis" in reasons_by_layer(network)["linear"]
    choice = narrows(network)[0]
    plan = Plan((choice,))
    removed = _removed(choice, network.piece(choice))
    found = outputs(linearize(network, plan), x)
    assert largest_error(found, outputs(unread(network.gm, network.channels, removed), x)) < SAME


@pytest.mark.parametrize("name", NETS)
def test_a_plan_says_which_channels_stay_and_reads_back(name):
    network, x = network_of(name)
    for choice in narrows(network)[:6]:
        families = network.inner_channels[choice.entry, choice.exit].families
        sizes = {family.tensor: len(family.ids) for family in families}
        kept = tuple(tuple(range(sizes[tensor] - count, sizes[tensor])) for tensor, count in choice.widths)
        chosen = replace(choice, kept=kept)
        again = Plan.from_json(Plan((chosen,)).to_json())
        assert again.choices[0].kept == kept
        found, wanted = (outputs(linearize(network, plan), x) for plan in (again, Plan((chosen,))))
        assert largest_error(found, wanted) == 0
        assert again == Plan((choice,))  # which channels stay is decided with the weights


def test_the_kept_channels_are_those_named():
    network, _ = network_of("plain chain")
    kept = (0, 3, 5, 7, 8, 9, 14, 15)
    narrow = linearize(network, Plan((narrow_to(network, "_2", 8, kept),)))
    own, weights = (
        [module.weight for module in gm.modules() if isinstance(module, nn.Conv2d)] for gm in (network.gm, narrow)
    )
    assert torch.equal(weights[0], own[0][list(kept)])
    assert torch.equal(weights[1], own[1][:, list(kept)])


@pytest.mark.parametrize(
    ("widths", "kept", "message"),
    [
        ((), (), "names no tensor"),
        ((("_2", 8), ("_2", 8)), (), "one twice"),
        ((("_9", 8),), (), "no channels live inside it at '_9'"),
        ((("_2", 0),), (), "has 16 channels"),
        ((("_2", 17),), (), "has 16 channels"),
        ((("_2", 3),), ((0, 1),), "must be 3 of 0 to 15"),
        ((("_2", 2),), ((0, 16),), "must be 2 of 0 to 15"),
        ((("_2", 2),), ((1, 1),), "must be 2 of 0 to 15"),
        ((("_2", 2),), ((0, 1), (0, 1)), "keeps channels of 2 tensors"),
    ],
)
def test_widths_that_do_not_fit_the_network_are_refused_in_a_sentence(widths, kept, message):
    network, _ = network_of("plain chain")
    choice = replace(narrow_to(network, "_2", 8), widths=widths, kept=kept)
    with pytest.raises(PlanError, match=message):
        linearize(network, Plan((choice,)))


def test_groups_that_are_torn_apart_are_refused():
    network, _ = network_of("groups")
    choice = narrows(network)[0]
    ((_, count),) = choice.widths
    torn = replace(choice, kept=(tuple(range(1, count + 1)),))
    with pytest.raises(PlanError, match="go together"):
        linearize(network, Plan((torn,)))


def test_a_span_without_inner_channels_cannot_be_narrowed():
    network, _ = network_of("plain chain")
    with pytest.raises(PlanError, match="no channels live inside it"):
        linearize(network, Plan((Narrow("_5", "output", (("_2", 8),)),)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("widths", [["_2"]]),
        ("widths", 3),
        ("widths", [["_2", True]]),
        ("kept", [3]),
        ("kept", "all"),
        ("kept", [[0.5]]),
    ],
)
def test_stored_fields_are_checked(field, value):
    stored = {"kind": "narrow", "entry": "x", "exit": "_3", "widths": [["_2", 8]], field: value}
    with pytest.raises(PlanError, match=field):
        decode_choice(stored)


def narrowed_anywhere(network, rng):
    """Return narrow choices of spans that do not overlap, with any number of channels from 1 on."""
    taken, choices = set(), []
    places = list(network.inner_channels)
    for index in rng.permutation(len(places)):
        entry, exit_ = places[index]
        nodes = set(network.span(entry, exit_).nodes)
        if nodes.isdisjoint(taken):
            taken |= nodes
            families = network.inner_channels[entry, exit_].families
            widths = [(family, int(rng.integers(1, family.channels // family.step + 1))) for family in families]
            kept = ((f.tensor, len(f.ids) - f.channels + steps * f.step) for f, steps in widths)
            choices.append(Narrow(entry, exit_, tuple(kept)))
    return choices, taken


def narrows_exactly(drawn, seed):
    """Narrow spans read no removed channel, and merge beside other choices."""
    net, x = drawn
    network, rng = CapturedNetwork(capture(net, x)), np.random.default_rng(seed)
    choices, taken = narrowed_anywhere(network, rng)
    removed = {label for choice in choices for label in _removed(choice, network.piece(choice))}
    linearized = linearize(network, Plan.of(choices))
    assert largest_error(outputs(linearized, x), outputs(unread(network.gm, network.channels, removed), x)) < SAME
    others = random_plan(network, rng, SpanLimits(kinds=("merge", "fit", "drop")))
    apart = [choice for choice in others if taken.isdisjoint(network.span(choice.entry, choice.exit).nodes)]
    plan = Plan.of([*choices, *apart])
    joint = linearize(network, plan)
    assert largest_error(outputs(merge(joint, plan), x), outputs(joint, x)) < SAME


@given(networks(), st.integers(0, 2**16))
@examples(100)
def test_any_network_is_narrowed_exactly_beside_other_choices(drawn, seed):
    narrows_exactly(drawn, seed)


@pytest.mark.slow
@given(networks(), st.integers(0, 2**16))
@examples(1000)
def test_a_thousand_networks_are_narrowed_exactly_beside_other_choices(drawn, seed):
    narrows_exactly(drawn, seed)
