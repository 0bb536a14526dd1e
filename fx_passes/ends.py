"""What stands at the end of a span: its own activation, one that is inserted, or none."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn

from fx_passes.graph_edit import add_module, redirect
from fx_passes.operators import Role, image_shape, known_layer, role
from fx_passes.plan import End

__all__ = ["activation_to_insert", "core_of", "end_activation", "set_end"]


def core_of(gm: fx.GraphModule, exit_: fx.Node) -> fx.Node:
    """Return the node before the activation and dropout at the end of a span."""
    while role(gm, exit_) in (Role.ACTIVATION, Role.PASS):
        exit_ = exit_.all_input_nodes[0]
    return exit_


def end_activation(gm: fx.GraphModule, core: fx.Node, exit_: fx.Node) -> fx.Node | None:
    """Return the node of the activation between a span's core and its exit, or None where there is none."""
    while exit_ is not core:
        if role(gm, exit_) is Role.ACTIVATION:
            return exit_
        exit_ = exit_.all_input_nodes[0]
    return None


def activation_to_insert(gm: fx.GraphModule, nodes: Sequence[fx.Node], core: fx.Node) -> nn.Module | None:
    """Return the last activation among a span's nodes, or None where none of them suits the tensor at its core."""
    shape = image_shape(core)
    for node in reversed(nodes):
        module = known_layer(gm, node)
        if role(gm, node) is Role.ACTIVATION and shape is not None:
            learned = module.num_parameters if isinstance(module, nn.PReLU) else 1
            return module if learned in (1, shape[1]) else None
    return None


def set_end(gm: fx.GraphModule, end: End, inner: Sequence[fx.Node], exit_: fx.Node) -> list[fx.Node]:
    """Change what follows the core of a span in place, and return the span's nodes up to its core.

    The span's exit keeps its name. Where an activation is inserted, the core's node becomes the activation, and
    the core moves to a new node before it.

    Args:
        gm: the graph to change.
        end: what shall follow the core.
        inner: the span's nodes up to its core.
        exit_: the node that produces the span's tensor.
    """
    core = inner[-1]
    if end == "none":
        active = end_activation(gm, core, exit_)
        assert active is not None  # offered only where there is one
        redirect(active, target=add_module(gm, f"linear_{active.name}", nn.Identity()), args=active.args)
    elif end == "inserted":
        activation = activation_to_insert(gm, inner, core)
        assert activation is not None  # offered only where there is one
        with gm.graph.inserting_before(core):
            moved = gm.graph.node_copy(core)
        redirect(core, target=add_module(gm, f"inserted_{core.name}", copy.deepcopy(activation)), args=(moved,))
        return [*inner[:-1], moved]
    return list(inner)
