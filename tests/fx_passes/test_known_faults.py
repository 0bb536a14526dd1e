"""Faults that earlier depth-compression codes have, each with a network on which it shows.

The comparisons are with the network itself, evaluated layer by layer in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_nets import captured, convolutions, image, outputs, plan_of, relative_error

from fx_passes import Merge, SpanLimits, affine, enumerate_spans, find_span, linearize, merge
from fx_passes.operators import image_shape

SAME = 1e-9  # of the largest value, in float64
GENEROUS = SpanLimits(longest_span=30, largest_kernel=30, largest_mac_growth=1e9)


def merged_span(gm, entry, exit_):
    """Return the linearized and the merged graph of the one exact merge between two tensors."""
    (choice,) = (
        choice
        for span in enumerate_spans(gm, GENEROUS)
        for choice in span.choices
        if (choice.entry, choice.exit, choice.kind) == (entry, exit_, "merge")
    )
    plan = plan_of((choice.entry, choice.exit, choice.kind, choice.kernel))
    linearized = linearize(gm, plan)
    return linearized, merge(linearized, plan)


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_the_eps_of_a_norm_is_its_own_and_not_the_default(eps):
    x = image()
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=eps), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7, eps=eps / 7)]
    gm = captured(nn.Sequential(*layers), x)
    with torch.no_grad():
        for norm in layers[1::2]:
            gm.get_submodule(str(layers.index(norm))).running_var.mul_(0.01)  # so that eps counts
    _, merged = merged_span(gm, "input_1", "_3")
    assert len(convolutions(merged)) == 1
    assert relative_error(outputs(merged, x)[0], outputs(gm, x)[0]) < SAME


def test_a_stem_of_one_channel_is_not_taken_for_depthwise():
    x = image(1)
    gm = captured(nn.Sequential(nn.Conv2d(1, 7, 3, bias=False), nn.Conv2d(7, 5, 3)), x)
    _, merged = merged_span(gm, "input_1", "_1")
    (conv,) = convolutions(merged)
    assert (conv.groups, conv.weight.shape) == (1, (5, 1, 5, 5))
    assert relative_error(outputs(merged, x)[0], outputs(gm, x)[0]) < SAME


class Skip(nn.Module):
    """A skip around layers, cropped to the layers' output at the top left."""

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


@pytest.mark.parametrize(
    ("padding", "kernel", "tap"),
    [
        ((0, 3, 0, 3), 4, (0, 0)),
        ((3, 0, 3, 0), 4, (3, 3)),
        ((1, 2, 2, 1), 4, (2, 1)),
        ((0, 4, 3, 1), 5, (3, 0)),
    ],
)
def test_the_tap_of_a_skip_follows_the_padding_and_not_half_the_kernel(padding, kernel, tap):
    x = image(5, 17, 19)
    net = Skip(nn.ZeroPad2d(padding), nn.Conv2d(5, 5, kernel, bias=False))
    gm = captured(net, x)
    gm.get_submodule("body.1").weight.data.zero_()  # what is left is the skip alone
    _, merged = merged_span(gm, "x", "add")
    (conv,) = convolutions(merged)
    assert [tuple(place) for place in conv.weight[2, 2].nonzero().tolist()] == [tap]
    assert torch.equal(outputs(merged, x)[0], x)


@pytest.mark.parametrize(
    ("first", "second", "kernel"),
    [
        ({"kernel_size": 2}, {"kernel_size": 4}, 5),
        ({"kernel_size": 3, "stride": 2}, {"kernel_size": 3}, 7),
        ({"kernel_size": 3, "stride": 3}, {"kernel_size": 2, "stride": 2}, 6),
        ({"kernel_size": 3, "dilation": 2}, {"kernel_size": 2, "dilation": 3}, 8),
        ({"kernel_size": 2, "stride": 2, "dilation": 3}, {"kernel_size": 3, "dilation": 2}, 12),
    ],
)
def test_the_merged_kernel_counts_even_sizes_strides_and_dilations(first, second, kernel):
    x = image(3, 29, 31)
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, **first), nn.Conv2d(5, 7, **second)), x)
    _, merged = merged_span(gm, "input_1", "_1")
    (conv,) = convolutions(merged)
    assert conv.kernel_size == (kernel, kernel)  # d1 (k1 - 1) + s1 d2 (k2 - 1) + 1
    assert relative_error(outputs(merged, x)[0], outputs(gm, x)[0]) < SAME


@pytest.mark.parametrize(("stride", "total"), [(1, 3), (2, 5), (3, 7)])
def test_inner_padding_counts_as_often_as_the_stride_before_it(stride, total):
    x = image(3, 29, 31)
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 3, stride, padding=1), nn.Conv2d(5, 7, 5, padding=2)), x)
    linearized, merged = merged_span(gm, "input_1", "_1")
    (conv,) = convolutions(merged)
    assert conv.padding == (total, total)  # p1 + s1 p2
    assert outputs(merged, x)[0].shape == outputs(gm, x)[0].shape
    assert relative_error(outputs(merged, x)[0], outputs(linearized, x)[0]) < SAME


def test_shapes_behind_a_max_pool_are_those_that_really_occur():
    x = image(3, 32, 48)
    stem = [nn.Conv2d(3, 5, 7, 2, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    gm = captured(nn.Sequential(*stem, Skip(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 5, 1))), x)
    spans = [span for span in enumerate_spans(gm, GENEROUS) if span.entry == "_3" and span.piece is not None]
    assert {span.piece.in_shape for span in spans} == {(2, 5, 8, 12)}
    (whole,) = (span for span in spans if span.exit == "add")
    assert whole.piece.macs == 2 * 8 * 12 * (5 * 5 * 9 + 5 * 5)
    nodes = {node.name: node for node in gm.graph.nodes}
    with torch.no_grad():
        behind = F.max_pool2d(torch.zeros(2, 5, 16, 24), 3, 2, 1)
    assert image_shape(nodes["_3"]) == tuple(behind.shape)


def test_candidates_are_not_enumerated_as_subsets(monkeypatch):
    """Candidates and the compositions behind them grow linearly with depth; 2 ** 40 subsets would never end."""
    compositions = []
    compose = affine.compose
    monkeypatch.setattr(affine, "compose", lambda *pair, **limit: compositions.append(1) or compose(*pair, **limit))
    counts = []
    for depth in (20, 40):
        layers = [layer for _ in range(depth) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
        gm = captured(nn.Sequential(*layers), image())
        compositions.clear()
        counts.append((len(enumerate_spans(gm)), len(compositions)))
    assert all(large <= 2.5 * small for small, large in zip(*counts, strict=True))


def test_which_of_forty_convolutions_to_prune_is_found_as_by_sorting():
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(40)]
    gm = captured(nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU()))), image())
    merges = [choice for choice in find_span(gm, "input_1", "_79").choices if isinstance(choice, Merge)]
    pruned = {choice.kernel: choice.pruned for choice in merges if choice.pruned}
    weights = {f"_{2 * index}": float(conv.weight.detach().abs().sum()) for index, conv in enumerate(convs)}
    smallest_first = sorted(weights, key=weights.__getitem__)
    assert len(pruned) == 39
    for count in range(1, 40):
        size = 2 * (40 - count) + 1
        assert set(pruned[size, size]) == set(smallest_first[:count])
