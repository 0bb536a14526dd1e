"""Selection of the refused parts that are worth a sentence in a report.

Networks also compute sizes, read inputs and return outputs; nobody expects convolutions to merge there.
"""

from __future__ import annotations

from torch.nn.modules.conv import _ConvNd

from fx_passes.facts import GraphFacts
from fx_passes.operators import NORMS, called_module
from fx_passes.output_nodes import is_output
from fx_passes.spatial_layers import AVG_POOLS
from fx_passes.structure import Level, Unit

__all__ = ["holds_layers", "is_boundary"]

_COMPRESSIBLE = (_ConvNd, *AVG_POOLS, *NORMS)
"""Layers that can merge; users want to know why one of theirs does not, whatever its forward."""


def holds_layers(graph: GraphFacts, unit: Unit) -> bool:
    """Say whether a convolution, a pooling or a norm stands in a unit."""
    nodes = graph.nodes
    if nodes[unit.nodes[0]].op == "placeholder" or is_output(nodes[unit.nodes[0]]):
        return False
    return any(isinstance(called_module(graph.gm, nodes[name]), _COMPRESSIBLE) for name in (*unit.nodes, *unit.region))


def is_boundary(graph: GraphFacts, level: Level, start: int) -> bool:
    """Say whether the unit after a cut reads images and is a neighbour of a unit with a convolution, pooling or norm.

    A size that is computed from an image is no boundary, nor is the network's output.
    """
    unit, entry, nodes = level.units[start], level.cuts[start], graph.nodes
    first = nodes[unit.nodes[0]]
    if first.op == "placeholder" or is_output(first) or "tensor_meta" not in nodes[unit.exit].meta:
        return False
    beside = (*level.units[max(start - 1, 0) : start], *level.units[start + 1 : start + 2])
    reads_image = entry in nodes and graph.shape(entry) is not None
    return reads_image and any(holds_layers(graph, unit) for unit in beside)
