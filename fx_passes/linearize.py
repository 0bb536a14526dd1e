"""plan -> trainable graph: activations inside spans removed, padding moved to each span's entry.

In this form merging is exact everywhere: the entry of a span is padded once, inner operators are not, and
where paths of different reach meet, the shorter one is cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import tidy
from fx_passes.kinds import kind_of
from fx_passes.module_paths import module_path
from fx_passes.network import CapturedNetwork, as_network
from fx_passes.plan import Plan, require_plan
from fx_passes.span import Piece

__all__ = ["linearize"]


def linearize(gm: fx.GraphModule | CapturedNetwork, plan: Plan, *, exact_border: bool = False) -> fx.GraphModule:
    """Return a copy of a captured graph in which `plan` is carried out, but nothing is merged yet.

    Spans to merge keep their convolutions and norms, with nn.Identity in the place of pruned ones; spans to fit
    hold one convolution, the centre of the merged kernel until a fit or training replaces it; dropped spans hold
    nn.Identity. The names of the spans' entry and exit nodes stay. `gm` is not changed.

    Args:
        gm: what `capture` returned, or the network of it, which analyses the graph once for many plans.
        plan: what to do.
        exact_border: leave the padding of a merged span where it is, if only the entry and 1x1 convolutions of it
            are padded. The span then computes at the border, too, what the network would with its activations as
            identity; its merged convolution reads one constant channel more. Padding of other spans moves to their
            entry all the same, and so does that of spans that merge into a grouped convolution.

    Raises:
        PlanError: a span of the plan does not exist in the graph, cannot be rewritten so, or overlaps
            another.
    """
    require_plan(plan)
    network = as_network(gm)
    pieces = [network.piece(choice) for choice in plan]
    _require_disjoint(pieces)
    copied = GraphFacts(copy.deepcopy(network.gm))
    for choice, piece in zip(plan, pieces, strict=True):
        kind_of(choice).linearize(copied, choice, piece, exact_border=exact_border)
    return tidy(copied.gm)


def _require_disjoint(pieces: Sequence[Piece]) -> None:
    seen: set[str] = set()
    for piece in pieces:
        twice = [name for name in piece.nodes if name in seen]
        if twice:
            where = module_path(piece.graph.nodes[twice[0]])
            raise PlanError(f"the plan rewrites {where} twice: its spans must not overlap")
        seen.update(piece.nodes)
