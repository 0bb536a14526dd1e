"""The methods of compression by name: which rewrites each may choose from, what it takes for loss, how it chooses.

All go through the same capture, latency table, measured search for the budget, merge and measurement, so that what
differs is the method alone. Those of the papers are told here in this project's words; each says where it deviates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from depthcomp.errors import DepthCompError
from depthcomp.latency.pricing import Candidate
from depthcomp.methods.baselines import Draw, at_random, evenly_spread, whole_blocks
from depthcomp.preparation import OFFERED
from fx_passes import SpanLimits
from fx_passes.operators import Role, image_shape, known_layer, role

__all__ = ["METHODS", "Method", "find_method"]

Allows = Callable[[fx.GraphModule, Candidate], bool]


def _anything(gm: fx.GraphModule, candidate: Candidate) -> bool:
    return True


def _merges(gm: fx.GraphModule, candidate: Candidate) -> bool:
    return candidate.choice.kind == "merge"


def _merges_and_prunings(gm: fx.GraphModule, candidate: Candidate) -> bool:
    """Say whether a candidate merges, some convolutions pruned or not, or prunes every convolution of a chain."""
    return candidate.choice.kind == "merge" or (candidate.choice.kind == "drop" and _all_prunable(gm, candidate))


def _all_prunable(gm: fx.GraphModule, candidate: Candidate) -> bool:
    nodes = [node for node in gm.graph.nodes if node.name in candidate.span.nodes]
    convolutions = [node for node in nodes if isinstance(known_layer(gm, node), nn.Conv2d)]
    same = all(image_shape(node) == image_shape(node.all_input_nodes[0]) for node in convolutions)
    return same and not any(role(gm, node) in (Role.ADD, Role.CONCAT) for node in nodes)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose what is rewritten.

    Attributes:
        name: what it is called.
        summary: what it does, in a line.
        limits: which choices spans offer it.
        allows: which of these it may take, asked with the network and the candidate.
        importance: the importance that its paper comes with; a compression takes the one that it is told to take.
        draw: makes the plans that it chooses among where no solver does; None for the solver's frontier.
        scored: whether it asks for the losses of choices.
        fits: whether new convolutions are solved for on calibration images, and a solver's plans compared by their
            true loss. Where not, fine-tuning starts from merged weights.
    """

    name: str
    summary: str
    limits: SpanLimits
    allows: Allows = field(repr=False)
    importance: str = "calibrated"
    draw: Draw | None = field(default=None, repr=False)
    scored: bool = True
    fits: bool = False

    def candidates(self, gm: fx.GraphModule, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the rewrites of a network that the method may take."""
        return [candidate for candidate in candidates if self.allows(gm, candidate)]


_PLAIN = SpanLimits(layer_pruning=False, other_ends=())
_LISTED = (
    Method("depthcomp", "fits, merges and drops, exact frontier, plans refitted", OFFERED, _anything, fits=True),
    Method(
        # Kim et al., ICML 2023, arXiv 2301.12187: activations become identity and what stands between two kept ones
        # merges exactly; an exact two-stage programme chooses by latency and importance; the end of a merge may get
        # an activation where it had none. Ours: a merge without an activation at its end is not offered, spans are
        # bounded like all others, and the measured search replaces rounding the table to a grid.
        "kim23", "exact merges, ends original or inserted, exact frontier",
        SpanLimits(layer_pruning=False, other_ends=("inserted",)), _merges, importance="kim23",
    ),
    Method(
        # Kim et al., ICML 2024, arXiv 2406.12837: besides activations whole convolutions become identity, so that the
        # others merge into a smaller kernel; for each kernel those of the largest sum of absolute weights stay. Ours:
        # a chain of which nothing stays is a drop, and a pruned residual branch leaves its sum in place.
        "layermerge", "exact merges with layer pruning, exact frontier",
        SpanLimits(layer_pruning=True, other_ends=()), _merges_and_prunings, importance="layermerge",
    ),
    Method(
        # Fu et al., ICML 2022, arXiv 2206.00843: whole blocks lose their activations and become one dense convolution
        # each; which, is learnt as masks together with the weights, with the share of activations that stays given.
        # Ours: blocks are ranked by an importance instead of learnt masks, and that share falls until the budget holds.
        "depthshrinker", "whole blocks lose their activations, the least important first",
        _PLAIN, _merges, draw=whole_blocks,
    ),
    Method(
        "uniform", "single units rewritten, evenly spread, refitted",
        OFFERED, _anything, draw=evenly_spread, scored=False, fits=True,
    ),
    Method(
        "random", "random rewrites until the budget holds, refitted",
        OFFERED, _anything, draw=at_random, scored=False, fits=True,
    ),
)  # fmt: skip
METHODS = {method.name: method for method in _LISTED}


def find_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        DepthCompError: there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise DepthCompError(f"method (={name!r}) must be one of {', '.join(METHODS)}")
    return METHODS[name]
