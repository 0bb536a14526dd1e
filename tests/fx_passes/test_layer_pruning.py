"""Layer pruning: the best set of convolutions for each kernel, against all subsets; and the merges that follow."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from toy_nets import Residual, captured, convolutions, image, largest_error, outputs

from depthcomp_errors import PlanError
from fx_passes import Merge, Plan, SpanLimits, enumerate_spans, fold_batch_norms, linearize, merge
from fx_passes.collapse import collapse

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64
LIMITS = SpanLimits(longest_span=12, largest_kernel=60, largest_mac_growth=1e9, other_ends=())


def random_chain(seed, length=6):
    """Return convolutions in a row, some of which stride or change the width, with norms and activations between."""
    rng = np.random.default_rng(seed)
    layers, channels = [], 4
    for _ in range(length):
        kernel = [int(rng.choice([1, 3, 5])), int(rng.choice([1, 3]))]
        stride = 2 if rng.random() < 0.15 else 1
        wider = channels + int(rng.random() < 0.2)
        layers.append(nn.Conv2d(channels, wider, kernel, stride, [k // 2 for k in kernel] if stride > 1 else "same"))
        channels = wider
        layers += [nn.BatchNorm2d(channels)] * int(rng.random() < 0.5) + [nn.ReLU()] * int(rng.random() < 0.8)
    return nn.Sequential(*layers)


class TwoPaths(nn.Module):
    """A residual block, then two branches with kernels of different sizes, between convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 5, 3, padding=1)
        self.block = Residual(5)
        self.left = nn.Sequential(nn.Conv2d(5, 5, 5, padding=2), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1))
        self.right = nn.Sequential(nn.Conv2d(5, 5, (3, 1), padding=(1, 0)), nn.ReLU(), nn.Conv2d(5, 5, 1))
        self.head = nn.Conv2d(10, 5, 3, padding=1)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


NETS = {f"chain{seed}": lambda seed=seed: random_chain(seed) for seed in range(8)} | {"two_paths": TwoPaths}


def network(name):
    x = image(4, 37, 41)
    return captured(NETS[name](), x), x


def conv_nodes(gm):
    """Return the nodes that call a convolution, by name."""
    calls = gm.graph.find_nodes(op="call_module")
    return {node.name: node for node in calls if isinstance(gm.get_submodule(node.target), nn.Conv2d)}


def prunable(gm, span):
    """Return a span's convolutions that keep their tensor's shape, their norms folded, by the name of their node."""
    found = {}
    for name, node in conv_nodes(gm).items():
        before, after = (n.meta["tensor_meta"].shape for n in (node.args[0], node))
        if name in span.nodes and before == after and gm.get_submodule(node.target).stride == (1, 1):
            found[name] = folded(gm, node)
    return found


def folded(gm, node):
    """Return a convolution with the norm behind it folded in, by PyTorch's own means."""
    conv, follower = gm.get_submodule(node.target), next(iter(node.users))
    norm = gm.get_submodule(follower.target) if follower.op == "call_module" else None
    return fuse_conv_bn_eval(conv.eval(), norm) if isinstance(norm, nn.BatchNorm2d) else conv


def kernel_without(gm, span, names):
    """Return the kernel of a span's collapse after some of its convolutions became identity."""
    pruned = copy.deepcopy(gm)
    nodes = {node.name: node for node in pruned.graph.nodes}
    for name in names:
        pruned.set_submodule(nodes[name].target, nn.Identity())
    inner = [nodes[name] for name in span.piece.inner]
    return collapse(pruned, nodes[span.entry], inner, span.piece.in_shape[1], device="meta")[inner[-1]].kernel


def weight_of(convs):
    return sum(float(conv.weight.detach().abs().sum()) for conv in convs)


def best_by_kernel(gm, span):
    """Return for each kernel the largest sum of absolute weights that any subset keeps, of at least one convolution."""
    convs, best = prunable(gm, span), {}
    left = sum(name in span.nodes for name in conv_nodes(gm)) - len(convs)
    for count in range(len(convs) + (left > 0)):
        for names in itertools.combinations(convs, count):
            kernel = kernel_without(gm, span, names)
            kept = weight_of(conv for name, conv in convs.items() if name not in names)
            best[kernel] = max(best.get(kernel, 0.0), kept)
    return best


@pytest.mark.parametrize("name", sorted(NETS))
def test_no_subset_of_convolutions_keeps_larger_weights_for_the_same_kernel(name):
    gm, _ = network(name)
    checked = 0
    for span in enumerate_spans(gm, LIMITS):
        choices = [choice for choice in span.choices if getattr(choice, "pruned", ())]
        best = best_by_kernel(gm, span) if choices else {}
        for choice in choices:
            convs = prunable(gm, span)
            assert set(choice.pruned) <= set(convs)
            kept = weight_of(conv for node, conv in convs.items() if node not in choice.pruned)
            assert kept == pytest.approx(best[choice.kernel], rel=1e-12)
            assert choice.kernel == kernel_without(gm, span, choice.pruned)
            checked += 1
    assert checked


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_smaller_kernel_that_leaves_a_convolution_is_offered(name):
    gm, _ = network(name)
    for span in enumerate_spans(gm, LIMITS):
        merges = [choice for choice in span.choices if choice.kind == "merge"]
        if merges:
            assert {choice.kernel for choice in merges} == {*best_by_kernel(gm, span), span.piece.operator.kernel}


@pytest.mark.parametrize("name", sorted(NETS))
def test_what_is_left_merges_exactly(name):
    gm, x = network(name)
    choices = [c for span in enumerate_spans(gm, LIMITS) for c in span.choices if getattr(c, "pruned", ())]
    for choice in choices[:: len(choices) // 9 + 1]:
        plan = Plan((choice,))
        linearized = linearize(gm, plan)
        merged = merge(linearized, plan)
        assert largest_error(outputs(merged, x), outputs(linearized, x)) < SAME
        assert [y.shape for y in outputs(merged, x)] == [y.shape for y in outputs(gm, x)]


class Tangled(nn.Module):
    """Two convolutions are read by a third and by the sum after it, so that no branch has an end of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(5, 5, 3, padding=1) for _ in range(3))

    def forward(self, x):
        a, c = self.a(x), self.c(x)
        return self.b(a + c) + a + c


def block():
    """Return a graph of three 3x3 convolutions of one width, the middle one with the smallest weights."""
    layers = [nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()]
    gm = captured(nn.Sequential(*(copy.deepcopy(layer) for _ in range(3) for layer in layers)), image(5))
    gm.get_submodule("3").weight.data.mul_(0.1)
    return gm


def test_norms_go_with_the_convolutions_before_them():
    gm, plan = block(), Plan((Merge("input_1", "_8", (5, 5), pruned=("_3",)),))
    linearized = linearize(gm, plan)
    left = [type(module) for module in linearized.children() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    assert left == [nn.Conv2d, nn.BatchNorm2d] * 2
    assert [conv.kernel_size for conv in convolutions(merge(linearized, plan))] == [(5, 5)]


def test_another_set_than_the_best_is_carried_out_too():
    gm, x = block(), image(5)
    (choice,) = (c for c in enumerate_spans(gm, LIMITS)[2].choices if c.kind == "merge" and c.kernel == (5, 5))
    assert choice.pruned == ("_3",)
    plan = Plan((Merge("input_1", "_8", (5, 5), pruned=("_0",)),))
    linearized = linearize(gm, plan)
    assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < SAME


@pytest.mark.parametrize(
    ("kernel", "pruned", "reason"),
    [
        ((5, 5), ("_0", "_3"), "its layers merge into a kernel of 3x3"),
        ((5, 5), ("nowhere",), "'nowhere' cannot be pruned, as it is not inside the span"),
        ((1, 1), ("_0", "_3", "_6"), "nothing is left to merge"),
        ((5, 5), ("_2",), "2 cannot be pruned, as only convolutions"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(kernel, pruned, reason):
    with pytest.raises(PlanError, match=rf"cannot be merged .*, as {reason}.*; possible here: merged 7x7"):
        linearize(block(), Plan((Merge("input_1", "_8", kernel, pruned=pruned),)))


def test_a_graph_with_its_norms_folded_prunes_alike():
    gm = block()
    folded_gm = copy.deepcopy(gm)
    fold_batch_norms(folded_gm)
    checked = 0
    for span in enumerate_spans(folded_gm, LIMITS):
        for choice in (choice for choice in span.choices if getattr(choice, "pruned", ())):
            plan = Plan((choice,))  # its pruned convolutions have the names of the norms
            linearized = linearize(gm, plan)
            x = image(5)
            assert largest_error(outputs(linearized, x), outputs(linearize(folded_gm, plan), x)) < SAME
            assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < SAME
            checked += 1
    assert checked > 3


def test_limits_switch_layer_pruning_off():
    spans = enumerate_spans(block(), SpanLimits(layer_pruning=False))
    assert not [choice for span in spans for choice in span.choices if getattr(choice, "pruned", ())]


def test_a_sum_cannot_be_pruned():
    gm = captured(Residual(), image(5))
    with pytest.raises(PlanError, match=r"add in the forward cannot be pruned, as only convolutions"):
        linearize(gm, Plan((Merge("x", "act2", (5, 5), pruned=("add",)),)))


def test_tangled_branches_are_merged_whole_or_not_at_all():
    """A convolution that several branches read would be counted once for each of them."""
    gm, x = captured(Tangled(), image(5)), image(5)
    choices = [c for s in enumerate_spans(gm, LIMITS) if (s.entry, s.exit) == ("x", "add_2") for c in s.choices]
    merges = [choice for choice in choices if choice.kind == "merge"]
    assert [choice.pruned for choice in merges] == [()]
    plan = Plan.of(merges)
    linearized = linearize(gm, plan)
    assert largest_error(outputs(merge(linearized, plan), x), outputs(linearized, x)) < SAME
