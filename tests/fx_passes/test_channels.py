"""Channels that can only be removed together, and networks without some of them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_nets import networks
from test_random_networks import examples
from torch import nn
from toy_nets import (
    TOYS,
    Sandwich,
    SqueezeExcite,
    captured,
    frozen_copy,
    image,
    is_unchanged,
    largest_error,
    outputs,
    toy_input,
)

from fx_passes import capture
from fx_passes.channels import channel_ties
from fx_passes.channels.layout import Layout
from fx_passes.channels.makers import maker_of

SAME = 1e-9  # of the largest value, in float64


def unread(gm, ties, removed):
    """Return a copy of a graph whose layers read nothing of some channels: their weights are zero there."""
    copied = copy.deepcopy(gm)
    for node in copied.graph.find_nodes(op="call_module"):
        layer, read = copied.get_submodule(node.target), ties.made.get(node.all_input_nodes[0].name)
        if maker_of(layer) is not None and getattr(layer, "groups", 1) == 1 and isinstance(read, Layout):
            dead = torch.tensor([k for k, label in enumerate(read.ids) if int(label) in removed], dtype=torch.long)
            with torch.no_grad():
                layer.weight.index_fill_(0 if isinstance(layer, nn.ConvTranspose2d) else 1, dead, 0.0)
    return copied


def removable(ties, seed, share=0.4):
    """Return a random part of the channels that can be removed."""
    drawn = np.random.default_rng(seed).random(ties.count) < share
    return {int(label) for label in np.flatnonzero(drawn)} - ties.fixed.keys()


def is_left(ties, removed):
    return all(not set(map(int, layout.ids)) <= removed for layout in ties.made.values() if isinstance(layout, Layout))


def reasons(ties, name):
    return {ties.fixed.get(int(label)) for label in ties.made[name].ids}


class Widths(nn.Module):
    """Layers that name their channels in every way: chunks, ranges, sizes in reshapes, vectors."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12)
        self.left, self.right = nn.Conv2d(6, 7, 1), nn.Conv2d(6, 7, 1)
        self.up, self.norm = nn.ConvTranspose2d(7, 8, 2, stride=2), nn.InstanceNorm2d(8, affine=True)
        self.hidden, self.end = nn.Linear(8 * 4, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        left, right = x.chunk(2, dim=1)
        x = self.left(left)[:, :] + self.right(x[:, 6:]) * right.mean()
        x = F.adaptive_max_pool2d(self.norm(self.up(x)), 2)
        return self.end(torch.tanh(self.hidden(x.reshape(x.shape[0], 32))))


class Shuffle(nn.Module):
    """Channels of two groups that take turns, and a norm over all channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.mixed, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.end(self.norm(self.mixed(x)))


class Custom(nn.Module):
    """A scale for each channel in a forward of the user's own, and rows in reverse order."""

    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

        def forward(self, x):
            return x * self.scale if x.shape[0] > 0 else x

    def __init__(self):
        super().__init__()
        self.stem, self.scale, self.end = nn.Conv2d(3, 9, 3), self.Scale(9), nn.Conv2d(9, 2, 3)

    def forward(self, x):
        return self.end(self.scale(self.stem(x)).flip(2))


NETS = {name: build for name, (build, channels) in TOYS.items()} | {
    "gated": lambda: Sandwich(SqueezeExcite()), "widths": Widths, "shuffle": Shuffle, "custom": Custom,
}  # fmt: skip
NO_FREE = ("depthwise", "squeeze_excite", "signal_squeeze_excite", "shuffle")  # channels of the images, or mixed ones


def captured_net(name):
    """Return the float64 graph of a net, and images for it."""
    torch.manual_seed(0)
    x = toy_input(name, height=12) if name in TOYS else image(3, height=12)
    return captured(NETS[name](), x), x


@pytest.mark.parametrize("name", NETS)
def test_a_net_without_channels_that_nothing_reads_computes_the_same(name):
    gm, x = captured_net(name)
    before, ties = frozen_copy(gm), channel_ties(gm)
    free = set(range(ties.count)) - ties.fixed.keys()
    assert bool(free) == (name not in NO_FREE)
    tried = False
    for seed in range(8):
        removed = removable(ties, seed)
        if is_left(ties, removed):
            found = ties.without(gm, removed)
            assert largest_error(outputs(found, x), outputs(unread(gm, ties, removed), x)) < SAME
            assert len(found.state_dict()) == len(gm.state_dict())
            count, fewer = (sum(p.numel() for p in net.parameters()) for net in (gm, found))
            assert fewer < count or not removed
            tried |= bool(removed)
    assert tried == bool(free)
    assert is_unchanged(gm, before)
    assert largest_error(outputs(ties.without(gm, set()), x), outputs(gm, x)) == 0


def test_channels_are_told_by_what_they_are_tied_to():
    gm, _ = captured_net("residual")
    ties = channel_ties(gm)
    assert reasons(ties, "conv1") == {None}
    assert reasons(ties, "conv2") == {"the network returns them"}
    assert len(set(ties.made["conv1"].ids)) == 7
    assert ties.made["conv1"].ids.tolist() == ties.made["act1"].ids.tolist()


def test_a_module_is_not_taken_for_the_function_that_it_is_called_by():
    class Misnamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.add, self.read = nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.read(self.add(self.make(x)))

    ties = channel_ties(captured(Misnamed(), image(3)))
    assert ties.made["add"].ids.tolist() == ties.made["make"].ids[[0, 4, 1, 5, 2, 6, 3, 7]].tolist()


def test_what_mixes_channels_is_named():
    gm, _ = captured_net("shuffle")
    ties = channel_ties(gm)
    assert reasons(ties, "stem") == {"view in the forward mixes them"}
    assert reasons(ties, "mixed") == {"norm mixes them"}


def test_an_operator_that_needs_all_channels_is_named():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
            self.factors = nn.Parameter(torch.rand(2, 8, 12, 13))

        def forward(self, x):
            return self.end(self.stem(x) * self.factors)

    x = image(height=12)
    ties = channel_ties(captured(Fixed(), x))
    assert reasons(ties, "stem") == {"mul in the forward needs all of them"}


def test_a_subclass_of_an_activation_may_mix_channels():
    class Mixing(nn.ReLU):
        __module__ = "torch.nn.modules.activation"  # so that tracing does not look inside

        def forward(self, x):
            return super().forward(x.cumsum(1))

    x = image(height=12)
    ties = channel_ties(captured(nn.Sequential(nn.Conv2d(3, 8, 1), Mixing(), nn.Conv2d(8, 2, 1)), x))
    assert None not in reasons(ties, "_0")


def test_an_operator_that_refuses_nan_fixes_what_it_reads():
    class Strict(nn.Module):
        __module__ = "torch.nn.modules.activation"  # so that tracing does not look inside

        def forward(self, x):
            if x.isnan().any():
                raise ValueError("NaN")
            return x * 2

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Strict(), nn.Conv2d(8, 5, 1))
    assert reasons(channel_ties(captured(net, image())), "_0") == {"1 mixes them"}


def test_sizes_given_by_name_are_refused_in_a_sentence():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.end(torch.reshape(self.stem(x), shape=(2, 8, 156, 1)))

    x = image(height=12)
    assert reasons(channel_ties(captured(Named(), x)), "stem") == {"reshape in the forward needs all of them"}


def test_groups_go_as_a_whole():
    x = image(height=12)
    gm = captured(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1)), x)
    ties = channel_ties(gm)
    assert len(set(ties.made["_0"].ids)) == 4
    removed = {int(ties.made["_0"].ids[0]), int(ties.made["_0"].ids[-1])}
    narrow = ties.without(gm, removed)
    first, grouped, last = (narrow.get_submodule(name) for name in "013")
    assert (first.out_channels, grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 4, 6, 2)
    assert last.weight.shape == (2, 6, 1, 1)
    assert largest_error(outputs(narrow, x), outputs(unread(gm, ties, removed), x)) < SAME


def loses_nothing(drawn, seed):
    net, x = drawn
    gm = capture(net, x)
    ties = channel_ties(gm)
    removed = removable(ties, seed)
    if is_left(ties, removed):
        found, wanted = (outputs(each, x) for each in (ties.without(gm, removed), unread(gm, ties, removed)))
        assert largest_error(found, wanted) < SAME


@given(networks(), st.integers(0, 2**16))
@examples(60)
def test_any_network_without_channels_that_nothing_reads_computes_the_same(drawn, seed):
    loses_nothing(drawn, seed)


@pytest.mark.slow
@given(networks(), st.integers(0, 2**16))
@examples(1000)
def test_a_thousand_networks_without_channels_that_nothing_reads_compute_the_same(drawn, seed):
    loses_nothing(drawn, seed)
