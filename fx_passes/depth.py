"""Depth of a network: the convolutions on its longest path from an input to an output."""

from torch import fx

from fx_passes.operators import called_module
from fx_passes.spatial_layers import CONVOLUTIONS

__all__ = ["convolution_depth"]


def convolution_depth(gm: fx.GraphModule) -> int:
    """Return the number of convolutions on the longest path through a graph."""
    depth: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = before + isinstance(called_module(gm, node), CONVOLUTIONS)
    return max(depth.values(), default=0)
