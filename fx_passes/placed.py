"""The convolutions that take the place of spans: put into a graph, and found in it again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.collapse import collapse
from fx_passes.ends import core_of
from fx_passes.graph_edit import add_module, number_kind, redirect
from fx_passes.hoist_padding import pad
from fx_passes.module_paths import module_path
from fx_passes.operators import image_shape, known_layer
from fx_passes.plan import Plan, SpanChoice

__all__ = ["PlacedConvolution", "insert_convolution", "not_linearized", "placed_convolutions", "span_ends"]


@dataclass(frozen=True, slots=True)
class PlacedConvolution:
    """A convolution that stands for a fitted span in a linearized graph.

    Attributes:
        entry: name of the node whose tensor it reads, before any padding.
        core: name of the node that calls it.
        module: the convolution.
        operator: what it computes, its padding included, in float64.
    """

    entry: str
    core: str
    module: nn.Conv2d
    operator: AffineConv

    def load(self, fitted: AffineConv) -> None:
        """Give the module the weights of an operator of the same shape."""
        self.module.weight.data.copy_(fitted.weight)
        assert self.module.bias is not None  # built with one
        self.module.bias.data.copy_(fitted.bias)


def placed_convolutions(linearized: fx.GraphModule, plan: Plan) -> list[PlacedConvolution]:
    """Return the convolutions of the fitted spans of `plan` in the order in which they run.

    Raises:
        PlanError: the graph is not the plan's linearized form.
    """
    order = {node.name: position for position, node in enumerate(linearized.graph.nodes)}
    placed = [_placed(linearized, choice) for choice in plan if choice.kind == "fit"]
    return sorted(placed, key=lambda place: order[place.core])


def _placed(linearized: fx.GraphModule, choice: SpanChoice) -> PlacedConvolution:
    entry, exit_ = span_ends(linearized, choice)
    core = core_of(linearized, exit_)
    module, shape = known_layer(linearized, core), image_shape(entry)
    inner = [core] if entry in core.all_input_nodes else [*core.all_input_nodes, core]
    if not isinstance(module, nn.Conv2d) or shape is None or entry not in inner[0].all_input_nodes:
        raise not_linearized(choice, f"{module_path(core)} is no convolution of {module_path(entry)}")
    return PlacedConvolution(entry.name, core.name, module, collapse(linearized, entry, inner, shape[1])[core])


def span_ends(linearized: fx.GraphModule, choice: SpanChoice) -> tuple[fx.Node, fx.Node]:
    """Return the nodes at the entry and at the exit of a span that was linearized by a choice.

    Raises:
        PlanError: the graph lacks one of the span's ends.
    """
    nodes = {node.name: node for node in linearized.graph.nodes}
    missing = [name for name in (choice.entry, choice.exit) if name not in nodes]
    if missing:
        raise not_linearized(choice, f"{missing[0]} is not in the graph")
    return nodes[choice.entry], nodes[choice.exit]


def not_linearized(choice: SpanChoice, found: str) -> PlanError:
    """Return the error of a graph that is not the form that `linearize` gives it by a choice."""
    return PlanError(f"{choice} is not in this form ({found}); merge needs the graph linearized by this plan")


def insert_convolution(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, operator: AffineConv, hint: str
) -> nn.Conv2d:
    """Make `node` the convolution `operator` of the tensor at `source`, and return the new module.

    Padding that nn.Conv2d cannot express becomes a node of its own. The node keeps its name and users.

    Raises:
        PlanError: the weights are beyond the range of the graph's type.
    """
    top, bottom, left, right = operator.padding
    symmetric = top == bottom >= 0 and left == right >= 0
    device, dtype = number_kind(gm, source)
    conv: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]  # draws no random numbers, unlike nn.Conv2d
        nn.Conv2d, operator.in_channels, operator.out_channels, operator.kernel, operator.stride,
        padding=(top, left) if symmetric else 0, groups=operator.groups,
        device=device, dtype=dtype,
    )  # fmt: skip
    conv.weight.data.copy_(operator.weight)
    assert conv.bias is not None  # built with one
    conv.bias.data.copy_(operator.bias)
    _require_finite(conv, operator, node)
    if not symmetric:
        source = pad(gm, node, source, operator.padding)
    redirect(node, target=add_module(gm, hint, conv), args=(source,))
    return conv


def _require_finite(conv: nn.Conv2d, operator: AffineConv, node: fx.Node) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in conv.parameters()):
        largest = max(float(operator.weight.abs().max()), float(operator.bias.abs().max()))
        raise PlanError(
            f"the one convolution at {module_path(node)} has weights up to {largest:.3g}, and {conv.weight.dtype} ends "
            f"at {torch.finfo(conv.weight.dtype).max:.3g}; plan shorter spans there, or merge in float32 first"
        )
