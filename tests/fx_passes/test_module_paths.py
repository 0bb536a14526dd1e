"""Users' names: every pass hands them on, and no sentence speaks of the graph's own."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toy_nets import captured, image, plan_of

from depthcomp_errors import PlanError
from fx_passes import (
    CapturedNetwork,
    SpanLimits,
    capture,
    enumerate_spans,
    find_span,
    fold_batch_norms,
    free_merges,
    insert_norms,
    linearize,
    merge,
    structure_tree,
)
from fx_passes.graph_edit import nodes_by_name
from fx_passes.module_paths import (
    ModuleNames,
    Place,
    copy_places,
    cover_places,
    describe_modules,
    module_path,
    places_of,
    set_places,
)
from fx_passes.walker import SpanWalker

pytestmark = pytest.mark.whole

OWN_NAME = re.compile(r"(batch_norm|add|mul|relu|conv2d|cat|mean|flatten)_\d+")


def paths(gm):
    """Return what users read for the nodes of a graph that compute something, in order."""
    return [module_path(node) for node in gm.graph.nodes if node.op.startswith("call")]


def recorded(gm):
    """Say whether all nodes of a graph that compute something know their place."""
    return all(node.meta.get("user_places") for node in gm.graph.nodes if node.op.startswith("call"))


def named(gm, *names):
    return [node for node in gm.graph.nodes if node.name in names]


class Block(nn.Module):
    """A convolution and a skip, with a shared activation."""

    def __init__(self, channels=5):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.short, self.relu = nn.Conv2d(channels, channels, 1), nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        y += self.short(x)
        return self.relu(y)


class Functional(nn.Module):
    """Layers and operations written out in the forward, in a part and in the network itself."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 5, 3, 3))
            self.scale, self.shift = nn.Parameter(torch.rand(1, 5, 1, 1)), nn.Parameter(torch.rand(1, 5, 1, 1))

        def forward(self, x):
            return F.relu(F.conv2d(x, self.weight)) * self.scale + self.shift

    def __init__(self):
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 5, 3), self.Part()

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, x.relu_()], 1).narrow(1, 0, 5)
        return torch.flatten(self.part(x) + 1, 1)


class Special(nn.Conv2d):
    """A convolution whose forward pads by hand."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 2, 1, 2)), self.weight, self.bias, self.stride)


class Branched(nn.Module):
    """RepVGG's block in training form."""

    def __init__(self, channels=5):
        super().__init__()
        self.three, self.one = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.three(x)) + self.one(x))


def test_a_residual_block_of_torchvision():
    gm = capture(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64))
    assert recorded(gm)
    assert paths(gm)[:11] == [
        "conv1", "bn1", "relu", "maxpool", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer1.0.conv2",
        "layer1.0.bn2", "add in layer1.0", "layer1.0.relu",
    ]  # fmt: skip
    assert paths(gm)[-3:] == ["avgpool", "flatten in the forward", "fc"]
    assert {"layer2.0.downsample.0", "layer2.0.downsample.1"} < set(paths(gm))


def test_a_norm_with_an_activation_of_its_own():
    gm = capture(timm.create_model("mobilenetv2_050").eval(), torch.zeros(1, 3, 64, 64))
    assert recorded(gm)
    assert paths(gm)[:5] == ["conv_stem", "bn1", "bn1.act", "blocks.0.0.conv_dw", "blocks.0.0.bn1"]
    assert "add in blocks.1.1" in paths(gm)
    fold_batch_norms(gm)
    assert paths(gm)[:5] == ["conv_stem", "bn1.act", "blocks.0.0.conv_dw", "blocks.0.0.bn1.act", "blocks.0.0.conv_pw"]


def test_operations_in_a_forward_are_told_with_the_module_around_them():
    gm = captured(Functional(), image())
    assert recorded(gm)
    assert paths(gm) == [
        "stem", "relu in the forward", "cat in the forward", "narrow in the forward", "conv2d in part", "relu in part",
        "mul in part to add in the forward", "flatten in the forward",
    ]  # fmt: skip


def test_arithmetic_that_becomes_one_layer_covers_its_module():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.rand(1, 3, 1, 1)), nn.Parameter(torch.rand(1, 3, 1, 1))

        def forward(self, x):
            return x * self.scale + self.shift

    gm = captured(nn.Sequential(Scale(), nn.Conv2d(3, 5, 3)), image())
    assert paths(gm) == ["0", "1"]


def test_a_forward_of_its_own_does_not_hide_the_layer():
    gm = captured(nn.Sequential(Special(3, 5, 3), nn.ReLU()), image())
    assert paths(gm) == ["pad in 0", "0", "1"]


def test_linear_layers_that_become_convolutions_keep_their_path():
    head = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), image())
    assert paths(gm) == ["0", "1", "3.0", "3.1", "3.2", "2"]


def test_both_calls_of_a_shared_module_keep_its_path():
    shared = nn.Conv2d(5, 5, 3)
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ModuleDict({"a": shared})["a"], nn.ReLU(), shared), image())
    assert paths(gm) == ["0", "1", "2", "1"]
    assert len({node.target for node in gm.graph.nodes if node.op == "call_module"}) == 4


def test_a_network_that_branches_on_sizes_keeps_them_too():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.block = nn.Conv2d(3, 5, 3), Block()

        def forward(self, x):
            x = self.conv(x)
            return self.block(x) if x.shape[2] > 3 else x

    gm = captured(nn.Sequential(Branching()), image())
    assert paths(gm) == [
        "0.conv", "0.block.conv", "0.block.bn", "0.block.relu", "0.block.short", "add in 0.block", "0.block.relu",
    ]  # fmt: skip


def test_copies_keep_places():
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 1), Block()), image())
    copied = copy.deepcopy(gm)
    assert paths(copied) == paths(gm)
    (node,) = named(copied, "_1_conv")
    with copied.graph.inserting_before(node):
        assert module_path(copied.graph.node_copy(node)) == "1.conv"


def test_free_merges_cover_what_they_merge():
    gm = captured(nn.Sequential(nn.Sequential(Branched(), Branched()), nn.Conv2d(5, 5, 1)), image(5))
    plan = free_merges(gm)
    merged = merge(linearize(gm, plan), plan)
    assert recorded(merged)
    assert paths(merged) == [
        "0.0.three to add in 0.0", "0.0.act", "0.1.three to add in 0.1", "0.1.act", "1",
    ]  # fmt: skip
    nodes = [node for node in merged.graph.nodes if node.op.startswith("call")]
    assert [describe_modules(nodes[:stop]) for stop in (2, 4, 5)] == ["0.0", "0", "the whole network"]


@pytest.mark.parametrize("exact_border", [False, True])
def test_a_merged_span_is_told_as_what_it_covers(exact_border):
    gm = captured(nn.Sequential(nn.Conv2d(5, 5, 1), Block(), nn.Conv2d(5, 3, 1)), image(5))
    (span,) = (s for s in enumerate_spans(gm) if (s.entry, s.exit) == ("_0", "_1_relu_1"))
    assert ModuleNames(nodes_by_name(gm)).describe_names(span.nodes) == "1"
    plan = plan_of(("_0", span.exit, "merge", (3, 3)))
    linearized = linearize(gm, plan, exact_border=exact_border)
    assert recorded(linearized)
    assert set(paths(linearized)) <= set(paths(gm))
    merged = merge(linearized, plan)
    assert recorded(merged)
    assert paths(merged) == ["0", "1.conv to add in 1", "1.relu", "2"]


def test_a_constant_channel_and_asymmetric_padding_have_places():
    net = nn.Sequential(nn.Conv2d(5, 7, 1), nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(7, 5, 3), nn.ReLU())
    gm = captured(net, image(5))
    plan = plan_of(("input_1", "_3", "merge", (3, 3)))
    merged = merge(linearize(gm, plan, exact_border=True), plan)
    assert recorded(merged)
    assert paths(merged) == ["2", "0 to 2", "0 to 2", "3"]


def test_a_fitted_span_and_its_norm_are_told_as_what_they_replace():
    gm = captured(nn.Sequential(Block(), nn.Conv2d(5, 3, 1)), image(5))
    plan = plan_of(("input_1", "_0_relu_1", "fit", (3, 3)))
    linearized = linearize(gm, plan)
    assert paths(linearized) == ["0.conv to add in 0", "0.relu", "1"]
    ones = torch.ones(5, dtype=torch.float64)
    normed = insert_norms(linearized, plan, {"add": (ones, ones)})
    assert paths(normed) == ["0.conv to add in 0", "0.conv to add in 0", "0.relu", "1"]


@pytest.mark.parametrize(("last", "exit_", "end"), [(nn.ReLU(), "_3", "none"), (nn.Softmax(1), "_2", "inserted")])
def test_other_ends_have_places(last, exit_, end):
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1), last), image())
    plan = plan_of(("input_1", exit_, "merge", (3, 3), end))
    linearized = linearize(gm, plan)
    merged = merge(linearized, plan)
    assert recorded(linearized)
    assert recorded(merged)
    assert paths(merged) == (["the whole network"] if end == "none" else ["0 to 2", "2", "3"])


NETWORKS = {
    "resnet18": torchvision.models.resnet18,
    "mobilenetv2_050": lambda: timm.create_model("mobilenetv2_050"),
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0"),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_no_refusal_speaks_of_the_graphs_own_names(name):
    gm = capture(NETWORKS[name]().eval(), torch.zeros(1, 3, 64, 64))
    walker = SpanWalker(CapturedNetwork(gm), SpanLimits())
    spans = [span for level in structure_tree(gm).levels() for span in walker.spans(level)]
    refusals = [span.refusal for span in spans if span.refusal]
    assert refusals
    assert not [refusal for refusal in refusals if OWN_NAME.search(refusal)]
    words = ModuleNames(nodes_by_name(gm))
    assert not [span for span in spans if OWN_NAME.search(words.describe_names(span.nodes))]
    assert not [path for path in paths(gm) if ":" in path]


def test_a_span_is_told_by_the_largest_modules_that_it_covers():
    net = nn.Sequential(nn.Sequential(nn.Sequential(Block(), Block()), Block()), nn.Conv2d(5, 3, 1))
    gm = captured(net, image(5))
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call")]
    block = len(nodes) // 3
    assert [
        describe_modules(part)
        for part in (
            nodes[:1], nodes[:2], nodes[:block], nodes[: 2 * block], nodes[: 3 * block], nodes[block : 3 * block],
            nodes[1:block], nodes[2 * block - 1 : 3 * block], nodes,
        )
    ] == [
        "0.0.0.conv", "0.0.0.conv to 0.0.0.bn", "0.0.0", "0.0", "0", "0.0.1 to 0.1",
        "0.0.0.bn to 0.0.0.relu", "0.0.1.relu to 0.1", "the whole network",
    ]  # fmt: skip


def test_a_module_called_twice_is_covered_by_both_calls_only():
    gm = captured(nn.Sequential(Block(), nn.Conv2d(5, 3, 1)), image(5))
    relu, second = (node for node in gm.graph.nodes if node.target in ("0.relu", "_0_relu_call2", "0_relu_call2"))
    others = [node for node in gm.graph.nodes if node.op.startswith("call") and node is not second][:-1]
    assert describe_modules([relu]) == describe_modules([relu, second]) == "0.relu"
    assert describe_modules(others) == "0.conv to add in 0"


def test_what_tracing_did_not_see_has_words_too():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3)), Functional.Part()))
    words = {node.name: module_path(node) for node in gm.graph.nodes}
    assert words == {
        "input_1": "the input", "_0_0": "0.0", "_1_weight": "the tensor 1.weight", "conv2d": "conv2d",
        "relu": "relu", "_1_scale": "the tensor 1.scale", "mul": "mul", "_1_shift": "the tensor 1.shift",
        "add": "add", "output": "the output",
    }  # fmt: skip


def test_places_are_set_copied_and_covered():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ReLU()))
    one, two, three = named(gm, "_0", "_1", "_2")
    set_places(one, [Place("a.b"), Place("a.b")])
    assert places_of(one) == (Place("a.b"),)
    copy_places(one, two)
    assert module_path(two) == "a.b"
    set_places(two, [Place.of_call("a", "__iadd__")])
    cover_places(three, [one, two])
    assert places_of(three) == (Place("a.b"), Place("a", "add"))
    assert module_path(three) == "a.b to add in a"


@pytest.mark.parametrize(
    ("called", "word"), [("relu_", "relu"), ("__radd__", "add"), ("itruediv", "div"), ("getitem", "index")]
)
def test_spellings_of_an_operation_get_one_word(called, word):
    assert str(Place.of_call("", called)) == f"{word} in the forward"


def test_errors_name_modules():
    gm = captured(nn.Sequential(Block(), nn.Conv2d(5, 5, 1), nn.MaxPool2d(2), Block()), image(5))
    with pytest.raises(PlanError, match=r"cannot be compressed: 2: MaxPool2d is not a convolution"):
        find_span(gm, "_0_relu_1", "_3_relu_1")
    twice = plan_of(("input_1", "_0_relu_1", "fit", (3, 3)), ("input_1", "_0_relu", "fit", (1, 1)))
    with pytest.raises(PlanError, match=r"the plan rewrites 0\.conv twice"):
        linearize(gm, twice)
    with pytest.raises(PlanError, match=r"the activation 0\.relu stands inside"):
        merge(gm, plan_of(("input_1", "_0_relu_1", "merge", (3, 3))))


def test_a_piece_without_choices_is_refused_by_the_modules_that_it_covers():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)), nn.ReLU(), nn.MaxPool2d(2))
    spans = enumerate_spans(captured(net, image()))
    assert any(
        span.refusal.startswith("0 to 1: cannot be merged or fitted, as it is one 1x1 layer already; ")
        for span in spans
    )
    net = nn.Sequential(Block(), nn.Conv2d(5, 3, 3), nn.Softmax(1))
    spans = enumerate_spans(captured(net, image(5)), SpanLimits(largest_mac_growth=0.01))
    expected = "0 to 1: cannot be merged or fitted, as one convolution would"
    assert any(span.refusal.startswith(expected) for span in spans)
