"""Samples that training lets fits expect: their sums against those of drawn samples, and what they change."""

import pytest
import torch
from torch import nn

from depthcomp.data.calibration import cross_validated
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.expectation import expectation_of
from depthcomp.fitting.scatter import Scatter
from fx_passes import CapturedNetwork, capture, fold_batch_norms
from fx_passes.affine import AffineConv
from fx_passes.norm_statistics import norm_statistics


def network(groups=1, kernel=3):
    """Return a network with a layer behind a norm whose channels have moments of their own, and the layer's node."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, kernel, groups=groups), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * (9 - kernel) ** 2, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.uniform_(-1, 1)
        for layer in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            layer[5] = layer[2]  # a copy
    gm = capture(net, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    statistics = norm_statistics(gm)
    fold_batch_norms(gm)
    return CapturedNetwork(gm, statistics), next(name for name in gm.graph.nodes if name.target == "3").name


def drawn(expectation, count):
    """Return patches (groups, count, unknowns) of the expected moments, and what the layer makes of them."""
    moments, operator = expectation.moments, expectation.operator
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 8, *operator.kernel, generator=generator, dtype=torch.float64)
    noise[:, 5] = noise[:, 2]
    values = moments.mean[:, None, None] + moments.variance.sqrt()[:, None, None] * noise
    made = AffineConv(operator.weight, operator.bias, (1, 1), (0, 0, 0, 0), operator.groups)(values)[:, :, 0, 0]
    patches = values.reshape(count, operator.groups, -1).transpose(0, 1)
    return patches, made.reshape(count, operator.groups, -1).transpose(0, 1)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (2, 3), (8, 3)])
def test_expected_sums_are_those_of_many_samples(groups, kernel):
    captured, node = network(groups, kernel)
    expectation = expectation_of(captured, node, share=0.5)
    patches, made = drawn(expectation, 40_000)
    seen = Scatter.of(patches, {"y": made})
    found = expectation.beside(seen)
    assert found.count == 20_000
    assert torch.allclose(found.x, seen.x, atol=0.03)
    assert torch.allclose(found.xx / found.count, seen.xx / seen.count, atol=0.06)
    for name in ("y", "yy", "xy"):
        ours, theirs = (getattr(each.targets["y"], name) / (each.count if name != "y" else 1) for each in (found, seen))
        assert torch.allclose(ours, theirs, atol=0.06), name


def test_some_channels_have_the_sums_of_all():
    captured, node = network()
    inputs, outputs = torch.arange(8) % 3 > 0, torch.arange(8) % 2 > 0
    whole = expectation_of(captured, node)
    some = expectation_of(captured, node, inputs=inputs, outputs=outputs)
    seen = Scatter.of(*(lambda patches, made: (patches, {"y": made}))(*drawn(whole, 100)))
    all_sums, sums = (each.beside(seen) for each in (whole, some))
    rows = inputs.repeat_interleave(9)
    assert torch.equal(sums.xx, all_sums.xx[:, rows][:, :, rows])
    assert torch.allclose(sums.targets["y"].xy, all_sums.targets["y"].xy[:, rows][..., outputs])
    assert torch.allclose(sums.targets["y"].y, all_sums.targets["y"].y[..., outputs])


def test_a_layer_behind_no_norm_expects_nothing():
    captured, _ = network()
    first = next(node for node in captured.nodes.values() if node.target == "0")
    assert expectation_of(captured, first.name) is None


def test_a_channel_that_no_image_shows_stays_where_training_showed_it():
    captured, node = network(kernel=1)
    with torch.no_grad():
        captured.gm.get_submodule("0").bias[0] = -50  # dark on all images, whatever its norm saw in training
        captured.gm.get_submodule("3").weight[:, 0] *= 50
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told, kept = captured.statistics, {}
    for name, statistics in (("told", told), ("not told", {})):
        captured.statistics = statistics
        orders = ChannelOrders(captured, cross_validated(images, 0))
        kept[name] = orders.kept(captured.nodes[node].all_input_nodes[0].name, 4)
    assert 0 in kept["told"]
    assert 0 not in kept["not told"]


@pytest.mark.parametrize(("scale", "shift"), [(0.01, 0), (100, 0), (1, 90)])
def test_norms_that_the_images_contradict_tell_nothing(scale, shift):
    """As those of a network that was never trained."""
    captured, node = network()
    expectation = expectation_of(captured, node)
    patches, made = drawn(expectation, 1000)
    assert expectation.agrees_with(Scatter.of(patches, {"y": made}))
    assert not expectation.agrees_with(Scatter.of(scale * patches + shift, {"y": made}))
