"""Linearization of a captured graph by a plan: the trainable form that merges exactly.

Activations inside merged spans are removed. The entry of a span is padded once, inner operators are not padded, and
where paths of different reach meet, the shorter one is cropped. Merging is then exact everywhere.
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

__all__ = ["linearize", "pieces_of"]


def linearize(gm: fx.GraphModule | CapturedNetwork, plan: Plan, *, exact_border: bool = False) -> fx.GraphModule:
    """Return a copy of a captured graph in which `plan` is carried out, but nothing is merged yet.

    A merged span keeps its convolutions and norms, with nn.Identity for pruned ones. A fitted span holds one
    convolution: the centre of the collapse, until a fit or training replaces it. A dropped span holds nn.Identity. The
    entry and exit nodes of spans keep their names. `gm` is not changed.

    Args:
        gm: what `capture` returned, or a `CapturedNetwork` of it, which analyses the graph once for many plans.
        plan: the choices to carry out.
        exact_border: whether to leave the padding of a merged span in place if only the entry and 1x1 convolutions of
            it are padded. The span then equals the network without the span's activations, also at the border, and
            its merged convolution reads one more constant channel. The padding of other spans, and of spans that merge
            into a grouped convolution, still moves to their entry.

    Raises:
        PlanError: a span of the plan does not exist in the graph, cannot be rewritten as planned, or overlaps
            another.
    """
    network = as_network(gm)
    pieces = pieces_of(network, plan)
    copied = GraphFacts(copy.deepcopy(network.gm))
    for choice, piece in zip(plan, pieces, strict=True):
        kind_of(choice).linearize(copied, choice, piece, exact_border=exact_border)
    return tidy(copied.gm)


def pieces_of(network: CapturedNetwork, plan: Plan) -> list[Piece]:
    """Return the pieces that the choices of a plan are for.

    Raises:
        PlanError: a choice is not possible, or two choices are for one layer.
    """
    require_plan(plan)
    pieces = [network.piece(choice) for choice in plan]
    _require_disjoint(pieces)
    return pieces


def _require_disjoint(pieces: Sequence[Piece]) -> None:
    seen: set[str] = set()
    for piece in pieces:
        twice = [name for name in piece.nodes if name in seen]
        if twice:
            where = module_path(piece.graph.nodes[twice[0]])
            raise PlanError(f"the plan rewrites {where} twice: its spans must not overlap")
        seen.update(piece.nodes)
