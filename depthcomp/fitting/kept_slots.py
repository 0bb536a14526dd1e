"""Slots for the kept layers behind a changed span.

A layer that reads a changed tensor no longer computes what it was trained for, and errors add up along a network. So
the kept layers behind each change are refitted to the original network's tensors. A refit leans to the layer's own
weights as strongly as unseen images favour. The target of a summand is the original's sum less the other summand as
it is now, so it also corrects the error of the other. Shape and latency stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from torch import fx

from fx_passes import Plan, Slot, SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.operators import Role, role
from fx_passes.slot_layers import can_be_solved, channel_axis, operator_at

__all__ = ["consumers_of", "kept_behind", "kept_slot", "nearest_behind"]


def kept_behind(linearized: GraphFacts, plan: Plan) -> list[Slot]:
    """Return slots for the kept convolutions and linear layers that read a plan's changes, in the graph's order.

    Dilated convolutions and convolutions that pad with values other than zero are left out.

    Args:
        linearized: the plan's linearized graph, its norms folded.
        plan: the plan.
    """
    return _behind(linearized, {choice.exit for choice in plan}, _rewritten(linearized.nodes, plan), nearest=False)


def nearest_behind(linearized: GraphFacts, plan: Plan, choices: Iterable[SpanChoice]) -> list[Slot]:
    """Return the slots of `kept_behind` for the first layers behind some of the plan's choices.

    They do not depend on each other: where a refit restores one summand, the target of the other summand is its own
    output.
    """
    return _behind(linearized, {choice.exit for choice in choices}, _rewritten(linearized.nodes, plan), nearest=True)


def consumers_of(graph: GraphFacts, name: str) -> list[Slot]:
    """Return slots for the first convolutions and linear layers behind the tensor called `name`."""
    return _behind(graph, {name}, set(), nearest=True)


def kept_slot(graph: GraphFacts, name: str) -> Slot:
    """Return the slot of the convolution or linear layer at the node called `name`."""
    node = graph.nodes[name]
    entry, operator, axis = node.all_input_nodes[0].name, operator_at(graph.gm, node), channel_axis(graph.gm, node)
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is not None and role(graph.gm, user) is Role.ADD:
        others = [operand.name for operand in user.all_input_nodes if operand is not node]
        if len(others) == 1 and graph.order[others[0]] < graph.order[node.name]:
            return Slot(node.name, entry, user.name, operator, kept=True, other=others[0], axis=axis)
    return Slot(node.name, entry, node.name, operator, kept=True, axis=axis)


def _behind(graph: GraphFacts, ends: Set[str], own: Set[str], *, nearest: bool) -> list[Slot]:
    """Return slots for the layers behind the tensors called `ends`, except the nodes called `own`."""
    changed, restored = set[str](), set[str]()
    found = []
    for name, node in graph.nodes.items():
        sources = {source.name for source in node.all_input_nodes}
        behind, reads = not restored.isdisjoint(sources), not changed.isdisjoint(sources)
        fits = reads and not behind and name not in own and can_be_solved(graph.gm, node)
        if fits:
            slot = kept_slot(graph, name)
            found.append(replace(slot, target=slot.node, other=None) if slot.other in restored else slot)
        if name in ends:
            changed.add(name)
        elif nearest and (fits or behind):
            restored.add(name)
        elif reads:
            changed.add(name)
    return found


def _rewritten(nodes: Mapping[str, fx.Node], plan: Plan) -> set[str]:
    """Return the names of the nodes inside a plan's spans."""
    found = set[str]()
    for choice in plan:
        pending = [nodes[choice.exit]]
        while pending:
            node = pending.pop()
            if node.name not in found and node is not nodes[choice.entry]:
                found.add(node.name)
                pending.extend(node.all_input_nodes)
    return found
