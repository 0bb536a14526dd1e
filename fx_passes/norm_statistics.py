"""Mean and variance of each channel on the training data, for the tensors behind batch norms.

A batch norm holds the mean and variance of its input on the data that it was trained on. They tell, without any image,
what a channel does on images that calibration does not show. Behind an activation the moments are those of its values
for normally distributed inputs. Behind a sum they are those of independent summands.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fx_passes.channel_affine import ChannelAffine
from fx_passes.channel_copies import channel_copies
from fx_passes.operators import Role, affine_operator, known_layer, role
from fx_passes.spatial_layers import BATCH_NORMS, CONVOLUTIONS

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
        known = [found[source.name] for source in node.all_input_nodes if source.name in found]
        if isinstance(known_layer(gm, node), BATCH_NORMS) and role(gm, node) is Role.AFFINE:
            moments = _behind_norm(gm, node)
        else:
            all_known = known and len(known) == len(node.all_input_nodes)
            moments = _behind(gm, node, known) if all_known else None
        if moments is not None:
            found[node.name] = moments
    return {name: ChannelMoments(*moments, copies[name].to(moments[0].device)) for name, moments in found.items()}


def _behind_norm(gm: fx.GraphModule, node: fx.Node) -> Moments | None:
    """Return the moments behind a norm. Channels without weights are constant, whatever the norm holds."""
    norm, before = known_layer(gm, node), known_layer(gm, node.all_input_nodes[0])
    assert isinstance(norm, BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None:
        return None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    if isinstance(before, CONVOLUTIONS):
        dead = ~before.weight.flatten(1).any(1)
        constant = torch.zeros_like(mean) if before.bias is None else before.bias.double()
        mean, variance = torch.where(dead, constant, mean), variance.masked_fill(dead, 0)
    return _scaled(gm, node, mean, variance)


def _scaled(gm: fx.GraphModule, node: fx.Node, mean: Tensor, variance: Tensor) -> Moments:
    """Return the moments behind a layer that scales and shifts each channel."""
    operator = affine_operator(gm, node, len(mean), device=str(mean.device))
    scale = operator.weight.flatten()
    return scale * mean + operator.bias, scale.square() * variance


def _behind(gm: fx.GraphModule, node: fx.Node, known: Sequence[Moments]) -> Moments | None:
    """Return the moments behind a node that reads tensors of known ones; None where they are not known."""
    layer, part = known_layer(gm, node), role(gm, node)
    if part is Role.PASS:
        return known[0]
    if isinstance(layer, ChannelAffine):
        return _scaled(gm, node, *known[0])
    if part is Role.ACTIVATION and layer is not None:
        return _activated(layer, *known[0])
    means, variances = zip(*known, strict=True)
    if part is Role.CONCAT:
        return torch.cat(means), torch.cat(variances)
    if part is Role.ADD and len(known) > 1 and len({len(mean) for mean in means}) == 1:  # one where x + x is summed
        return torch.stack(means).sum(0), torch.stack(variances).sum(0)
    return None


def _activated(layer: nn.Module, mean: Tensor, variance: Tensor) -> Moments:
    """Return the moments of an activation's values for normally distributed inputs."""
    levels = (torch.arange(QUANTILES, dtype=torch.float64, device=mean.device) + 0.5) / QUANTILES
    inputs = mean + variance.sqrt() * torch.special.ndtri(levels)[:, None]
    values = copy.deepcopy(layer).double()(inputs[:, :, None, None])[:, :, 0, 0]
    return values.mean(0), values.var(0, correction=0)
