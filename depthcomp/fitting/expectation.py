"""Samples that fits of kept layers see besides the images, from the moments of the training data.

Few images do not show everything that a channel does. A fit that never sees a channel fire may give it any weight. The
samples are inputs with the mean and variance that norms hold (`fx_passes.norm_statistics`), independent but for copies,
and the outputs of the original layer for them. Nothing is drawn: their sums have a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depthcomp.fitting.scatter import Scatter, Target
from fx_passes import CapturedNetwork
from fx_passes.affine import AffineConv
from fx_passes.norm_statistics import ChannelMoments
from fx_passes.slot_layers import operator_at

__all__ = ["Expectation", "expectation_of"]

SHARE = 0.3  # of 0.1, 0.3, 1 and 3 the least divergence on other photos, of EfficientNet-Lite0 narrowed to 1.6x
FAR = 16.0  # largest ratio to the norms' variance; photos have 0.12 to 1.8 of it, and squared shifts of means up to 0.7


@dataclass(frozen=True, slots=True)
class Expectation:
    """A layer, and the moments of its inputs on the training data.

    Attributes:
        moments: the moments of its input channels (c,).
        operator: the original layer.
        share: number of its samples, relative to those of the images.
        inputs: which input channels the fit has (c,), as booleans; None for all.
        outputs: which output channels the fit has, as booleans; None for all.
    """

    moments: ChannelMoments
    operator: AffineConv
    share: float
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def beside(self, seen: Scatter) -> Scatter:
        """Return the sums of the samples, to add to those of images; each target is the output of the layer."""
        groups, pixels = self.operator.groups, self.operator.weight[0, 0].numel()
        x = self.moments.mean.repeat_interleave(pixels).reshape(groups, -1, 1)
        xx = torch.stack([torch.kron(block, torch.eye(pixels).to(block)) for block in self._covariance_of_groups()])
        weight = self.operator.weight.to(x).reshape(groups, -1, x.shape[1]).transpose(1, 2)
        y = x.transpose(1, 2) @ weight + self.operator.bias.to(x).reshape(groups, 1, -1)
        if self.outputs is not None:
            weight, y = weight[..., self.outputs], y[..., self.outputs]
        xy = xx @ weight
        yy = (weight * xy).sum(1, keepdim=True)
        if self.inputs is not None:
            some = self.inputs.repeat_interleave(pixels)
            x, xx, xy = x[:, some], xx[:, some][:, :, some], xy[:, some]
        count = self.share * seen.count
        return Scatter(count, x, count * xx, dict.fromkeys(seen.targets, Target(y, count * yy, count * xy)))

    def agrees_with(self, seen: Scatter) -> bool:
        """Say whether the images' moments are near those of the norms. With an untrained network they are not."""
        some = slice(None) if self.inputs is None else self.inputs
        pixels = self.operator.weight[0, 0].numel()
        expected = self.moments.variance[some].mean()
        shift = seen.x.flatten() - self.moments.mean[some].repeat_interleave(pixels)
        power = seen.xx.diagonal(dim1=1, dim2=2).mean() / seen.count
        return bool(expected < FAR * power and power < FAR * expected and shift.square().mean() < FAR * expected)

    def _covariance_of_groups(self) -> Tensor:
        """Return the covariance of the inputs of each group, (groups, c / groups, c / groups)."""
        groups = self.operator.groups
        size = len(self.moments.mean) // groups
        apart = self.moments.covariance.reshape(groups, size, groups, size)
        return apart.diagonal(dim1=0, dim2=2).movedim(-1, 0)


def expectation_of(
    network: CapturedNetwork,
    node: str,
    *,
    share: float = SHARE,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
) -> Expectation | None:
    """Return the expectation of the layer at a node; None where no norm tells its inputs' moments.

    Args:
        network: the captured network.
        node: name of the node of a convolution or linear layer.
        share: number of its samples, relative to those of the images.
        inputs: which input channels the fit has, as booleans, where the layer is not grouped; None for all.
        outputs: which output channels the fit has, as booleans; None for all.
    """
    layer = network.nodes[node]
    moments, operator = network.statistics.get(layer.all_input_nodes[0].name), operator_at(network.gm, layer)
    if moments is None or len(moments.mean) != operator.in_channels:
        return None
    return Expectation(moments, operator, share, inputs, outputs)
