"""Hashes of networks: what changes the function changes the hash, and nothing else does."""

import copy

import pytest
import torch
from torch import nn

from depthcomp.fingerprint import fingerprint, network_hash, seed_of
from fx_passes import Merge, Plan, capture, linearize


def network(activation=nn.ReLU, eps=1e-5, padding=1, **pooling):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=padding), nn.BatchNorm2d(4, eps=eps), activation(),
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AvgPool2d(3, padding=1, **pooling),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [{"activation": nn.SiLU}, {"eps": 1e-3}, {"padding": 0}, {"count_include_pad": False}],
)
@pytest.mark.parametrize("form", [lambda net: net, lambda net: capture(net, torch.zeros(1, 3, 8, 8))])
def test_settings_of_layers_count(other, form):
    assert network_hash(form(network())) == network_hash(form(network()))
    assert network_hash(form(network())) != network_hash(form(network(**other)))


def test_every_tensor_counts_but_not_the_mode():
    before = network()
    assert network_hash(copy.deepcopy(before).train()) == network_hash(before)
    for tensor in (before[0].bias, before[1].running_var):
        hashed = network_hash(before)
        tensor.data[0] += 1e-6
        assert network_hash(before) != hashed


def test_plans_that_leave_all_weights_alone_are_told_apart():
    """A linearized graph keeps the layers of a span that it merges; only its activations go."""
    gm = capture(network(), torch.zeros(1, 3, 8, 8))
    names = [node.name for node in gm.graph.nodes]
    merged = linearize(gm, Plan((Merge(names[0], names[5], (3, 3)),)))
    assert merged.state_dict().keys() == gm.state_dict().keys()
    assert all(torch.equal(tensor, gm.state_dict()[name]) for name, tensor in merged.state_dict().items())
    assert network_hash(merged) != network_hash(gm)


def test_order_kind_and_limits_of_values_count():
    parts = [("a", "b"), ("b", "a"), ("ab",), ("a", 1), ("a", "1"), ("a", 1.0), ("a", True), ("a", torch.ones(1))]
    parts += [("a", torch.ones(1, 1)), ("a", torch.ones(1, dtype=torch.float64))]
    assert len({fingerprint(*each) for each in parts}) == len(parts)
    assert fingerprint(("a", ["b"])) == fingerprint("a", "b")
    assert seed_of("a", 1) == seed_of("a", "1") != seed_of("a", 2)
