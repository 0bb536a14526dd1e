"""Channels that are copies of others, as equal weights make them from equal inputs."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fx_passes.operators import NORMS, Role, image_shape, known_layer, role
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS, ZERO_PADS, Convolution

__all__ = ["channel_copies"]

_OF_EACH_CHANNEL = (*NORMS, *AVG_POOLS, *ZERO_PADS)


@torch.no_grad()
def channel_copies(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Return a number for each channel of each image tensor (c,), by node name; copies have equal numbers.

    Args:
        gm: a captured graph.
    """
    found = dict[str, Tensor]()
    for node in gm.graph.nodes:
        shape = image_shape(node)
        if shape is not None:
            read = [found[source.name] for source in node.all_input_nodes if source.name in found]
            numbers = _numbers(gm, node, read) if read and len(read) == len(node.all_input_nodes) else None
            found[node.name] = torch.arange(shape[1]) if numbers is None or len(numbers) != shape[1] else numbers
    return found


def _numbers(gm: fx.GraphModule, node: fx.Node, read: list[Tensor]) -> Tensor | None:
    """Return the numbers of the channels at a node; None where they may all differ."""
    layer, part = known_layer(gm, node), role(gm, node)
    if isinstance(layer, CONVOLUTIONS):
        return _made_by(layer, read[0])
    if part in (Role.ACTIVATION, Role.PASS) or isinstance(layer, _OF_EACH_CHANNEL):
        own = [] if layer is None else [*layer.parameters(), *layer.buffers()]
        return _numbered(read[0], *(each for each in own if each.shape == read[0].shape))
    if part is Role.CONCAT:
        parts = torch.arange(len(read)).repeat_interleave(torch.tensor([len(each) for each in read]))
        return _numbered(torch.cat(read), parts)
    return _numbered(*read) if part is Role.ADD and len({len(each) for each in read}) == 1 else None


def _made_by(convolution: Convolution, read: Tensor) -> Tensor:
    """Return the numbers of the channels that a convolution makes, given those of its inputs."""
    outputs, groups = convolution.out_channels, convolution.groups
    inputs = read.reshape(groups, -1).repeat_interleave(outputs // groups, 0)
    own = [convolution.weight.flatten(1)] + ([] if convolution.bias is None else [convolution.bias])
    return _numbered(inputs, *own)


def _numbered(*columns: Tensor) -> Tensor:
    """Return a number for each row of columns (c,) or (c, n), equal for equal rows."""
    rows = torch.cat([column.reshape(len(column), -1).double().cpu() for column in columns], dim=1)
    numbers: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return numbers
