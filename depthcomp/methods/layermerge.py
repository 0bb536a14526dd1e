"""Method of LayerMerge, Kim et al., ICML 2024 (arXiv 2406.12837).

Activations and whole convolutions become identity, so that the rest merges into a smaller kernel. For each kernel the
convolutions with the largest sum of absolute weights stay.

Deviations: a chain without a kept convolution is a drop. A pruned residual branch leaves its sum in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from depthcomp.latency.pricing import Candidate
from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from fx_passes import CapturedNetwork, SpanLimits
from fx_passes.operators import Role
from fx_passes.spatial_layers import CONVOLUTIONS


def _leaves_a_layer_or_prunes_all(network: CapturedNetwork, candidate: Candidate) -> bool:
    """Return whether the candidate has a layer, or all convolutions of its chain can become identity."""
    return bool(candidate.body.operators) or _all_prunable(network, candidate.span.nodes)


def _all_prunable(network: CapturedNetwork, names: Sequence[str]) -> bool:
    convolutions = [name for name in names if isinstance(network.layer(name), CONVOLUTIONS)]
    sources = [network.nodes[name].all_input_nodes[0].name for name in convolutions]
    same = [*map(network.shape, convolutions)] == [*map(network.shape, sources)]
    return same and not any(network.roles[name] in (Role.ADD, Role.CONCAT) for name in names)


register(
    Method(
        "layermerge",
        "exact merges with layer pruning, exact frontier",
        SpanLimits(layer_pruning=True, other_ends=(), kinds=("merge", "drop")),
        allows=_leaves_a_layer_or_prunes_all,
        importance="layermerge",
    )
)
