"""Free merges: found without any plan, exact at every pixel, and nothing else is taken for one."""

import itertools
import operator

import numpy as np
import pytest
import timm
import torch
from torch import nn
from toy_nets import captured, convolutions, frozen_copy, image, is_unchanged, largest_error, outputs, relative_error

from fx_passes import Plan, capture, free_merges, linearize, merge

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64


class Branched(nn.Module):
    """RepVGG's block in training form: a 3x3, a 1x1 and, where shapes allow, a norm alone, side by side."""

    def __init__(self, c_in=5, c_out=5, stride=1, groups=1):
        super().__init__()
        self.three = nn.Conv2d(c_in, c_out, 3, stride, padding=1, groups=groups, bias=False)
        self.one = nn.Conv2d(c_in, c_out, 1, stride, groups=groups, bias=False)
        self.bn3, self.bn1 = nn.BatchNorm2d(c_out, eps=0.013), nn.BatchNorm2d(c_out)
        self.norm = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.bn3(self.three(x)) + self.bn1(self.one(x))
        return self.act(y if self.norm is None else self.norm(x) + y)


class Joined(nn.Module):
    """The sum of two branches of one tensor."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) + self.right(x)


def carry_out(gm, *inputs):
    """Carry the free merges out; check that nothing but the depth changed; return the plan and the network."""
    before = frozen_copy(gm)
    plan = free_merges(gm)
    linearized = linearize(gm, plan)
    merged = merge(linearized, plan)
    assert is_unchanged(gm, before)
    wanted = outputs(gm, *inputs)
    assert largest_error(outputs(linearized, *inputs), wanted) < SAME
    assert largest_error(outputs(merged, *inputs), wanted) < SAME
    return plan, merged


def ends(plan):
    return [(choice.entry, choice.exit, choice.kernel) for choice in plan]


@pytest.mark.parametrize(("name", "blocks"), [("repvgg_a0", 22), ("mobileone_s0", 43)])
def test_networks_trained_with_branches_keep_one_convolution_a_block(name, blocks):
    torch.manual_seed(0)
    x = image(3, 37, 41)
    gm = captured(timm.create_model(name, num_classes=7), x)
    plan, merged = carry_out(gm, x)
    assert len(plan) == len(convolutions(merged)) == blocks < len(convolutions(gm))
    assert not [m for m in merged.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not merged.graph.find_nodes(op="call_function", target=operator.add)


def test_branches_merge_and_activations_stay():
    x = image(3)
    gm = captured(nn.Sequential(Branched(3, 5, stride=2), Branched(), Branched(5, 10, groups=5)), x)
    plan, merged = carry_out(gm, x)
    assert ends(plan) == [("input_1", "_0_act", (3, 3)), ("_0_act", "_1_act", (3, 3)), ("_1_act", "_2_act", (3, 3))]
    assert [conv.groups for conv in convolutions(merged)] == [1, 1, 5]
    assert sum(isinstance(module, nn.ReLU) for module in merged.modules()) == 3


FREE = {
    "a linear chain without inner padding": (
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=2), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1), nn.ReLU()),
        [("input_1", "_3", (3, 3))],
    ),
    "a skip over one convolution": (
        nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), Joined(nn.Conv2d(5, 5, 3, padding=1), nn.Identity())),
        [("_1", "add", (3, 3))],
    ),
    "padding before a padded convolution": (
        Joined(
            nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 5, 3)),
            nn.Sequential(nn.ZeroPad2d((2, 1, 0, 1)), nn.Conv2d(3, 5, 3, padding=(1, 0)), nn.ZeroPad2d((-1, 0, 0, -1))),
        ),
        [("x", "add", (3, 3))],
    ),
    "a 1x1 convolution that has no bias, before a padded one": (
        nn.Sequential(nn.Conv2d(5, 11, 1, bias=False), nn.Conv2d(11, 5, 3, padding=1)),
        [("input_1", "_1", (3, 3))],
    ),
    "zero added": (
        nn.Sequential(nn.Conv2d(3, 3, 1), type("Zero", (nn.Module,), {"forward": lambda self, x: 0 + x})(),
                      nn.Conv2d(3, 3, 3)),
        [("input_1", "_2", (3, 3))],
    ),
    "only the pair that saves multiply-adds": (
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(2, 16, 1)),
        [("input_1", "_1", (1, 1))],
    ),
    "pooling after a strided convolution": (
        nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.BatchNorm2d(5)),
        [("input_1", "_2", (5, 5))],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "wanted"), FREE.values(), ids=FREE.keys())
def test_what_is_free(net, wanted):
    x = image(16 if wanted[0][2] == (1, 1) else 5 if "11, kernel" in str(net) else 3)
    plan, _ = carry_out(captured(net, x), x)
    assert ends(plan) == wanted


COSTLY = {
    "an activation inside": nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 1)),
    "an activation inside a branch": Joined(nn.Conv2d(5, 5, 1), nn.Sequential(nn.Conv2d(5, 5, 1), nn.ReLU())),
    "inner padding": nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)),
    "inner padding on one side": nn.Sequential(nn.Conv2d(5, 5, 1), nn.ZeroPad2d((0, 1, 0, 0)), nn.Conv2d(5, 2, 1)),
    "inner padding in a branch": Joined(
        nn.Conv2d(5, 5, 3, padding=1), nn.Sequential(nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 3, padding=1))
    ),
    "padding after a norm": nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3, padding=1)),
    "cropping before padding": nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1)),
    "more multiply-adds": nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 5, 1)),
    "a barrier": nn.Sequential(nn.Conv2d(5, 5, 1), nn.MaxPool2d(2), nn.Conv2d(5, 5, 1)),
    "nothing to merge": nn.Sequential(nn.Conv2d(5, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
}


@pytest.mark.parametrize("name", sorted(COSTLY))
def test_what_is_not_free(name):
    x = image(5)
    gm = captured(COSTLY[name], x)
    plan, merged = carry_out(gm, x)
    assert plan == Plan()
    assert len(convolutions(merged)) == len(convolutions(gm))


def test_a_tensor_that_leaves_a_branch_keeps_its_convolution():
    class Leaving(nn.Module):
        def __init__(self):
            super().__init__()
            self.three, self.one, self.after = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)

        def forward(self, x):
            y = self.three(x)
            return torch.relu(y + self.one(x)) * self.after(y)

    x = image(5)
    plan, merged = carry_out(captured(Leaving(), x), x)
    assert plan == Plan()
    assert len(convolutions(merged)) == 3


def test_branches_inside_an_irreducible_region_merge_too():
    class Tangled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Sequential(nn.Conv2d(5, 5, 3), nn.Conv2d(5, 5, 1)), nn.Conv2d(5, 5, 3)
            self.three = nn.Conv2d(5, 5, 1)

        def forward(self, x):
            y = torch.tanh(self.one(x))
            z = self.two(x) * y
            return self.three(z) + y

    x = image(5)
    plan, _ = carry_out(captured(Tangled(), x), x)
    assert [choice.kernel for choice in plan] == [(3, 3)]


def test_merging_twice_finds_nothing_more():
    x = image(3)
    gm = captured(nn.Sequential(Branched(3, 5), Branched()), x)
    _, merged = carry_out(gm, x)
    assert free_merges(capture(merged, x)) == Plan()


def test_free_merges_of_random_chains_save_most():
    """The oracle enumerates every set of neighbouring 1x1 convolutions to merge."""
    rng = np.random.default_rng(0)
    x = image(7)
    for _ in range(10):
        widths = [7, *(int(w) for w in rng.integers(1, 17, size=5))]
        layers = [nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths)]
        _, merged = carry_out(captured(nn.Sequential(*layers), x), x)
        left = sum(conv.weight.numel() for conv in convolutions(merged))
        assert left == min(_weights(widths, cuts) for cuts in range(2**4))


def _weights(widths, cuts):
    ends = [widths[0], *(w for place, w in enumerate(widths[1:-1]) if cuts >> place & 1), widths[-1]]
    return sum(a * b for a, b in itertools.pairwise(ends))


def test_single_precision_loses_nothing_that_a_class_score_shows():
    torch.manual_seed(0)
    x = image(3, 37, 41)
    gm = captured(timm.create_model("repvgg_a0", num_classes=7), x).float()
    plan = free_merges(gm)
    (wanted,), (found,) = outputs(gm, x.float()), outputs(merge(linearize(gm, plan), plan), x.float())
    assert relative_error(found, wanted) < 1e-4
    assert torch.equal(found.argmax(1), wanted.argmax(1))
