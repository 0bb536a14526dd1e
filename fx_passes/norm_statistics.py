"""What batch norms tell about the training data: mean and variance of each channel of the tensors behind them.

A batch norm with weight g and bias b makes channels of mean b and variance g^2 on the data that it was trained on. Few
images may not show what a channel does on others; these moments tell it without any. Behind an activation they are
those of a normal distribution's values, behind a sum those of independent summands.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fx_passes.channel_affine import ChannelAffine
from fx_passes.channel_copies import channel_copies
from fx_passes.operators import Role, known_layer, role

__all__ = ["ChannelMoments", "norm_statistics"]

QUANTILES = 256  # values that stand for a normal distribution

Moments = tuple[Tensor, Tensor]  # mean and variance by channel (c,)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    """Moments of the channels of a tensor on the training data.

    Attributes:
        mean: mean of each channel (c,), in float64.
        variance: variance of each channel (c,), in float64.
        copies: a number for each channel (c,); channels of equal number are made by equal weights, so they are equal.
    """

    mean: Tensor
    variance: Tensor
    copies: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance (c, c) of channels that are independent, but for copies."""
        deviation = self.variance.sqrt()
        return torch.outer(deviation, deviation) * (self.copies[:, None] == self.copies)


@torch.no_grad()
def norm_statistics(gm: fx.GraphModule) -> dict[str, ChannelMoments]:
    """Return the moments on the training data, by node name, of the tensors whose channels norms tell about.

    Args:
        gm: a captured graph before its norms are folded; folding keeps the names of the norms' nodes.
    """
    found, copies = dict[str, Moments](), channel_copies(gm)
    for node in gm.graph.nodes:
        layer, known = known_layer(gm, node), [found[each.name] for each in node.all_input_nodes if each.name in found]
        if isinstance(layer, nn.BatchNorm2d):
            moments = _behind_norm(layer, known_layer(gm, node.all_input_nodes[0]))
        else:
            all_known = known and len(known) == len(node.all_input_nodes)
            moments = _behind(layer, role(gm, node), known) if all_known else None
        if moments is not None:
            found[node.name] = moments
    return {name: ChannelMoments(*moments, copies[name].to(moments[0].device)) for name, moments in found.items()}


def _behind_norm(norm: nn.BatchNorm2d, before: nn.Module | None) -> Moments | None:
    """Return the moments behind a norm; channels without weights do not vary, whatever the norm says."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    mean, spread = norm.running_mean.double(), norm.running_var.double() + norm.eps
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    variance = weight.square() * norm.running_var.double() / spread
    if not isinstance(before, nn.Conv2d):
        return bias, variance
    constant = torch.zeros_like(mean) if before.bias is None else before.bias.double()
    dead = ~before.weight.flatten(1).any(1)
    return torch.where(dead, bias + weight * (constant - mean) * spread.rsqrt(), bias), variance.masked_fill(dead, 0)


def _behind(layer: nn.Module | None, part: Role, known: Sequence[Moments]) -> Moments | None:
    """Return the moments behind a node that reads tensors of known ones; None where they are not known."""
    if part is Role.PASS:
        return known[0]
    if isinstance(layer, ChannelAffine):
        return _scaled(layer, *known[0])
    if part is Role.ACTIVATION and layer is not None:
        return _activated(layer, *known[0])
    means, variances = zip(*known, strict=True)
    if part is Role.CONCAT:
        return torch.cat(means), torch.cat(variances)
    if part is Role.ADD and len({len(mean) for mean in means}) == 1:
        return torch.stack(means).sum(0), torch.stack(variances).sum(0)
    return None


def _scaled(layer: ChannelAffine, mean: Tensor, variance: Tensor) -> Moments:
    scale = torch.ones_like(mean) if layer.weight is None else layer.weight.double()
    shift = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    return mean * scale + shift, variance * scale.square()


def _activated(layer: nn.Module, mean: Tensor, variance: Tensor) -> Moments:
    """Return the moments of an activation's values for normally distributed inputs."""
    levels = (torch.arange(QUANTILES, dtype=torch.float64, device=mean.device) + 0.5) / QUANTILES
    inputs = mean + variance.sqrt() * torch.special.ndtri(levels)[:, None]
    values = copy.deepcopy(layer).double()(inputs[:, :, None, None])[:, :, 0, 0]
    return values.mean(0), values.var(0, correction=0)
