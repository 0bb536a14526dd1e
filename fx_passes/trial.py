"""Merged networks for a few forwards, which share the layers that a plan leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Any

from torch import fx

from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import preserved_attributes
from fx_passes.kinds import kind_of
from fx_passes.linearize import pieces_of
from fx_passes.merge import without_leftovers
from fx_passes.network import CapturedNetwork
from fx_passes.plan import Plan
from fx_passes.slot_layers import layers_of_slot

__all__ = ["trial_of"]


def trial_of(network: CapturedNetwork, plan: Plan, loaded: Collection[str] = ()) -> GraphFacts:
    """Return the network that `merge(linearize(network, plan), plan)` returns, made in a fraction of the time.

    Layers outside the plan's spans are those of `network` itself, so the result is for forwards only. The layers
    behind `loaded` are copies, which may take other weights.

    Args:
        network: a captured network in evaluation mode; it is not changed.
        plan: the choices to carry out.
        loaded: names of slots outside the plan's spans that `load_operator` will fill.

    Raises:
        PlanError: as `linearize` and `merge`.
    """
    pieces = pieces_of(network, plan)
    own = [*loaded, *(name for piece in pieces for name in piece.nodes)]
    trial = GraphFacts(_copy(network, own))
    for choice, piece in zip(plan, pieces, strict=True):
        kind_of(choice).linearize(trial, choice, piece, exact_border=False)
    trial.gm.graph.eliminate_dead_code()
    trial = GraphFacts(trial.gm)
    for choice in plan:
        kind_of(choice).merge(trial, choice)
    return GraphFacts(without_leftovers(trial.gm))


def _copy(network: CapturedNetwork, own: Iterable[str]) -> fx.GraphModule:
    """Return a copy of a network's graph that shares all layers but those behind some nodes."""
    gm = network.gm
    apart = {node.target for name in own if name in network.nodes for node in layers_of_slot(gm, network.nodes[name])}
    called = {node.target for node in gm.graph.find_nodes(op="call_module")}
    shared: list[Any] = [gm.get_submodule(target) for target in called - apart]
    shared += preserved_attributes(gm).values()
    copied: fx.GraphModule = copy.deepcopy(gm, {id(each): each for each in shared})
    return copied
