"""Ends of spans: find the activation there, insert one, or remove it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn

from fx_passes.choice import End
from fx_passes.graph_edit import add_module, redirect
from fx_passes.operators import Role, image_shape, known_layer, role

__all__ = ["activation_to_insert", "end_activation", "pre_activation_of", "set_end"]


def pre_activation_of(gm: fx.GraphModule, exit_: fx.Node, entry: fx.Node) -> fx.Node:
    """Return the node before the activation and dropout at the end of a span; at most its entry."""
    while exit_ is not entry and role(gm, exit_) in (Role.ACTIVATION, Role.PASS):
        exit_ = exit_.all_input_nodes[0]
    return exit_


def end_activation(gm: fx.GraphModule, pre_activation: fx.Node, exit_: fx.Node) -> fx.Node | None:
    """Return the node of the activation between a span's pre-activation and its exit, or None where there is none."""
    while exit_ is not pre_activation:
        if role(gm, exit_) is Role.ACTIVATION:
            return exit_
        exit_ = exit_.all_input_nodes[0]
    return None


def activation_to_insert(gm: fx.GraphModule, nodes: Sequence[fx.Node], pre_activation: fx.Node) -> fx.Node | None:
    """Return the node of a span's last activation, or None where it has none that suits the pre-activation's shape."""
    shape = image_shape(pre_activation)
    for node in reversed(nodes):
        module = known_layer(gm, node)
        if role(gm, node) is Role.ACTIVATION and shape is not None:
            learned = module.num_parameters if isinstance(module, nn.PReLU) else 1
            return node if learned in (1, shape[1]) else None
    return None


def set_end(gm: fx.GraphModule, end: End, inner: Sequence[fx.Node], exit_: fx.Node) -> list[fx.Node]:
    """Change the end of a span in place, and return the span's nodes up to its pre-activation.

    The span's exit keeps its name. Where an activation is inserted, the pre-activation's node becomes the activation,
    and the pre-activation moves to a new node before it.

    Args:
        gm: the graph to change.
        end: what is to follow the pre-activation.
        inner: the span's nodes up to its pre-activation.
        exit_: the node that produces the span's tensor.
    """
    last = inner[-1]
    if end == "none":
        active = end_activation(gm, last, exit_)
        assert active is not None  # possible only where there is one
        redirect(active, target=add_module(gm, f"linear_{active.name}", nn.Identity()), args=active.args)
    elif end == "inserted":
        activation = activation_to_insert(gm, inner, last)
        assert activation is not None  # possible only where there is one
        layer = copy.deepcopy(gm.get_submodule(str(activation.target)))
        with gm.graph.inserting_before(last):
            moved = gm.graph.node_copy(last)
        redirect(last, target=add_module(gm, f"inserted_{last.name}", layer), args=(moved,))
        return [*inner[:-1], moved]
    return list(inner)
