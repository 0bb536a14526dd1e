"""Method of DepthShrinker, Fu et al., ICML 2022 (arXiv 2206.00843).

Whole blocks lose their activations, and each becomes one dense convolution. The paper learns masks of blocks together
with the weights, for a given share of kept activations.

Deviations: an importance ranks the blocks in place of learnt masks. The share of activations falls until the budget
holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from depthcomp.methods.baselines import Materials, Rewrites, disjoint, growing
from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from fx_passes import Level, SpanLimits, Unit
from fx_passes.operators import Role

__all__ = ["whole_blocks"]


def whole_blocks(materials: Materials) -> Iterator[Rewrites]:
    """Yield the plans that merge the least important block, the two least important ones, and so on.

    A block is a region of parallel branches, or the units between two ends. An end is a tensor without an activation
    before it, or one that joins branches. The units before the first end are no block.
    """
    network = materials.network
    ends = {(level, *block) for level in network.levels for block in _blocks(level, network.roles)}
    scored = [candidate for candidate in materials.candidates if candidate.choice in materials.losses]
    blocks = [c for c in scored if (c.span.level, c.span.start, c.span.stop) in ends]
    yield from growing(disjoint(sorted(blocks, key=lambda candidate: materials.losses[candidate.choice])))


def _blocks(level: Level, roles: Mapping[str, Role]) -> Iterator[tuple[int, int]]:
    """Yield the cuts around each block of a level."""
    start = None
    for stop, unit in enumerate(level.units, start=1):
        if unit.region:
            yield stop - 1, stop
        elif not _linear(unit, roles):
            continue
        elif start is not None:
            yield start, stop
        start = stop


def _linear(unit: Unit, roles: Mapping[str, Role]) -> bool:
    return Role.ACTIVATION not in {roles[name] for name in unit.nodes}


register(
    Method(
        "depthshrinker",
        "whole blocks lose their activations, the least important first",
        SpanLimits(layer_pruning=False, other_ends=(), kinds=("merge",)),
        draw=whole_blocks,
    )
)
