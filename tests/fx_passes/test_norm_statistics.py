"""Moments that norms tell, against those of tensors of the data that set the norms' statistics."""

import pytest
import torch
from torch import nn

from depthcomp.fitting.execution import record
from fx_passes import capture
from fx_passes.norm_statistics import norm_statistics


def trained(net, seed=0):
    """Return a captured network whose norms have seen random images, and the images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(64, 3, 16, 16, generator=generator)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    with torch.no_grad():
        net.train()(images)
    return capture(net.eval(), images[:1]), images


def tensors(gm, images):
    """Return the tensors at all nodes, by name."""
    names = {node.name for node in gm.graph.nodes if node.op == "call_module"}
    return record(gm, images, names)


def sequence(*behind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), *behind)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.PReLU(12), nn.Tanh()], ids=str
)
def test_moments_are_those_of_the_data_behind_norms_and_activations(activation):
    gm, images = trained(sequence(activation, nn.Conv2d(12, 4, 1)))
    made, told = tensors(gm, images), norm_statistics(gm)
    assert len(told) == 2
    for name, moments in told.items():
        values = made[name].double().transpose(0, 1).flatten(1)
        assert torch.allclose(moments.mean, values.mean(1), atol=0.03)
        assert torch.allclose(moments.variance, values.var(1, correction=0), rtol=0.06, atol=1e-3)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = sequence(), sequence()
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        one, other = self.one(x), self.other(x)
        return self.last(torch.cat([one + other, other], 1))


def test_sums_and_concatenations_join_moments():
    gm, _ = trained(Joined())
    told = norm_statistics(gm)
    one, other, _, joined = told.values()
    assert torch.equal(joined.mean, torch.cat([one.mean + other.mean, other.mean]))
    assert torch.equal(joined.variance, torch.cat([one.variance + other.variance, other.variance]))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.last = sequence(), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        one = self.one(x)
        return self.last(one + one)


def test_a_tensor_added_to_itself_is_no_sum_of_independent_ones():
    gm, _ = trained(Twice())
    assert [name for name in norm_statistics(gm) if "add" in name] == []


def test_a_channel_without_weights_is_constant_whatever_its_norm_says():
    net = sequence(nn.ReLU(), nn.Conv2d(12, 4, 1))
    gm, _ = trained(net)
    with torch.no_grad():
        gm.get_submodule("0").weight[3] = 0
    told, made = norm_statistics(gm), tensors(gm, torch.randn(1, 3, 16, 16))
    for name, moments in told.items():
        assert moments.variance[3] < 1e-12
        assert torch.allclose(moments.mean[3].float(), made[name][0, 3], atol=1e-5)
        assert bool((moments.variance[torch.arange(12) != 3] > 1e-3).all())


def test_copies_have_equal_numbers_through_depthwise_layers():
    net = sequence(nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight[7], layer.bias[7] = layer.weight[2], layer.bias[2]
        net[3].weight[8], net[3].bias[8] = net[3].weight[1], net[3].bias[1]  # of other inputs, so no copy
    gm, _ = trained(net)
    with torch.no_grad():
        for module in gm.modules():
            if isinstance(module, nn.BatchNorm2d):
                for each in (module.weight, module.bias, module.running_mean, module.running_var):
                    each[7] = each[2]
    for name, moments in norm_statistics(gm).items():
        _, counts = moments.copies.unique(return_counts=True)
        assert sorted(counts.tolist()) == [1] * 10 + [2], name
        assert moments.covariance[2, 7] == pytest.approx(float(moments.variance[2]))
        assert moments.covariance[1, 8] == 0


def test_norms_without_statistics_tell_nothing():
    assert not norm_statistics(capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)))
    gm, _ = trained(sequence(nn.ReLU()))
    gm.get_submodule("1").running_mean = None
    assert not norm_statistics(gm)
