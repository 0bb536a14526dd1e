"""Method of LayerMerge, Kim et al., ICML 2024 (arXiv 2406.12837).

Besides activations, whole convolutions become identity, so that the others merge into a smaller kernel. For each kernel
the convolutions with the largest sum of absolute weights stay.

Deviations: a chain of which no convolution stays is a drop. A pruned residual branch leaves its sum in place.
"""

from __future__ import annotations

from torch import fx, nn

from depthcomp.latency.pricing import Candidate
from depthcomp.methods.method import Method
from depthcomp.methods.registry import METHODS
from fx_passes import SpanLimits
from fx_passes.operators import Role, image_shape, known_layer, role


def _merges_and_prunings(gm: fx.GraphModule, candidate: Candidate) -> bool:
    """Say whether a candidate merges, some convolutions pruned or not, or prunes every convolution of a chain."""
    return candidate.choice.kind == "merge" or (candidate.choice.kind == "drop" and _all_prunable(gm, candidate))


def _all_prunable(gm: fx.GraphModule, candidate: Candidate) -> bool:
    nodes = [node for node in gm.graph.nodes if node.name in candidate.span.nodes]
    convolutions = [node for node in nodes if isinstance(known_layer(gm, node), nn.Conv2d)]
    same = all(image_shape(node) == image_shape(node.all_input_nodes[0]) for node in convolutions)
    return same and not any(role(gm, node) in (Role.ADD, Role.CONCAT) for node in nodes)


METHODS.register(
    "layermerge",
    Method(
        "layermerge",
        "exact merges with layer pruning, exact frontier",
        SpanLimits(layer_pruning=True, other_ends=()),
        allows=_merges_and_prunings,
        importance="layermerge",
    ),
)
