"""The kind `merge`: a span without its inner activations collapses exactly into one convolution.

Some convolutions may become identity too, so that the others merge into a smaller kernel (LayerMerge, Kim et al., ICML
2024, arXiv 2406.12837).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx, nn

from fx_passes.affine import AffineConv
from fx_passes.body import Body
from fx_passes.borders import pads_only_zeros
from fx_passes.choice import End, Kernel, SpanChoice
from fx_passes.collapse import collapse
from fx_passes.ends import set_end
from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import add_module, redirect
from fx_passes.hoist_padding import hoist_padding
from fx_passes.kinds.end_text import described_end, end_sign
from fx_passes.kinds.fields import parse_end, parse_kernel, parse_node, parse_nodes, read_choice
from fx_passes.kinds.registry import Kind, register
from fx_passes.kinds.single_convolution import (
    body_of,
    end_obstacle,
    ends,
    inner_of,
    limit_obstacle,
    merge_into_one,
    one_layer,
    size_text,
)
from fx_passes.layer_pruning import with_norms
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import module_path
from fx_passes.operators import Role, before_norms, known_layer, role
from fx_passes.span import Piece
from fx_passes.spatial_layers import CONVOLUTIONS, on_both_axes

__all__ = ["Merge"]


@dataclass(frozen=True, slots=True)
class Merge(SpanChoice):
    """A span collapses into one convolution.

    Attributes:
        kernel: height and width of the convolution.
        end: what follows it.
        pruned: names of the nodes whose convolutions, and the norms that follow them, become identity before the
            others merge into the smaller `kernel`.
    """

    kind: ClassVar[str] = "merge"
    kernel: Kernel
    end: End = "original"
    pruned: tuple[str, ...] = ()

    def __str__(self) -> str:
        without = f" without {', '.join(self.pruned)}" if self.pruned else ""
        return f"merge {size_text(self.kernel)} {self.place}{without}{end_sign(self.end)}"


@register
class MergeKind(Kind[Merge]):
    """Merges all layers of a span, or all that are not pruned."""

    choice = Merge
    precedence = 10
    done = "merged"
    explanation = "the activations inside were removed, and the rest collapsed exactly into one convolution"

    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[Merge]:
        """Yield, for each possible end, the merge of all layers, then the merges with layers pruned."""
        sizes = list(_sizes(piece, limits))
        for ending in ends(piece, limits) if sizes else ():
            yield from (Merge(piece.entry, piece.exit, size, ending, pruned) for size, pruned in sizes)

    def check(self, choice: Merge, piece: Piece) -> str:
        """Return why a piece cannot merge as the choice says; empty where it can."""
        return _merge_obstacle(choice, piece) or end_obstacle(piece, choice.end)

    def refusal(self, piece: Piece, limits: SpanLimits) -> str:
        """Return why the layers of a piece cannot merge."""
        return _whole_obstacle(piece) or limit_obstacle(piece, piece.operator.kernel, limits)

    def body(self, choice: Merge, piece: Piece) -> Body:
        """Return the convolution, and the activation inserted after it if there is one."""
        return body_of(piece, choice.kernel, choice.end)

    def weights(self, choice: Merge, piece: Piece) -> Mapping[str, AffineConv]:
        """Return the collapse of the layers that are not pruned."""
        return {piece.pre_activation: _collapsed(choice, piece)}

    def linearize(self, copied: GraphFacts, choice: Merge, piece: Piece, *, exact_border: bool) -> None:
        """Remove activations and pruned layers from a span, and move its padding to its entry."""
        gm, entry = copied.gm, copied.nodes[piece.entry]
        _prune(gm, _pruned(copied, choice))
        inner = set_end(gm, choice.end, inner_of(copied, piece), copied.nodes[piece.exit])
        linear = _drop_activations(gm, inner)
        if not (exact_border and piece.operator.groups == 1 and pads_only_zeros(gm, entry, linear, carry_biases=True)):
            hoist_padding(gm, entry, linear)

    def merge(self, linearized: GraphFacts, choice: Merge) -> None:
        """Collapse the layers that are left in the span."""
        merge_into_one(linearized, choice, choice.kernel)

    def describe(self, choice: Merge) -> str:
        """Return words for the merge, its size, the number of pruned layers, and its end if that is changed."""
        count = len(choice.pruned)
        pruned = f", {count} layer{'' if count == 1 else 's'} pruned" if count else ""
        return f"{self.done} {size_text(choice.kernel)}{pruned}{described_end(choice.end)}"

    def decode(self, fields: Mapping[str, Any]) -> Merge:
        """Return the choice with these stored fields."""
        parsers = {
            "entry": parse_node,
            "exit": parse_node,
            "kernel": parse_kernel,
            "end": parse_end,
            "pruned": parse_nodes,
        }
        return read_choice(Merge, fields, parsers)


def _sizes(piece: Piece, limits: SpanLimits) -> Iterator[tuple[Kernel, tuple[str, ...]]]:
    """Yield the kernels within limits, and the convolutions to prune for each."""
    full = piece.operator.kernel
    if not _whole_obstacle(piece) and not limit_obstacle(piece, full, limits):
        yield full, ()
    for size, pruning in piece.prunings.by_kernel().items() if piece.prunings else ():
        pruned = 0 < len(pruning.names) < piece.layers
        if pruned and size != full and not limit_obstacle(piece, size, limits):
            yield size, pruning.names


def _whole_obstacle(piece: Piece) -> str:
    return "" if piece.layers > 1 or piece.joins else one_layer(piece)


def _merge_obstacle(choice: Merge, piece: Piece) -> str:
    """Return why a piece cannot merge into the choice's kernel; empty where it can."""
    obstacle = _pruning_obstacle(choice, piece) if choice.pruned else _whole_obstacle(piece)
    if obstacle:
        return obstacle
    found = _collapsed(choice, piece, device="meta").kernel
    return "" if found == choice.kernel else f"its layers merge into a kernel of {size_text(found)}"


def _pruning_obstacle(choice: Merge, piece: Piece) -> str:
    """Return why the choice's convolutions cannot become identity; empty where they can."""
    graph = piece.graph
    for name in choice.pruned:
        if name not in piece.nodes:
            return f"{_words(graph, name)} cannot be pruned, as it is not inside the span"
    for node in _pruned(graph, choice):
        if not _is_prunable(graph, node):
            return f"{module_path(node)} cannot be pruned, as only convolutions that keep the shape of their tensor can"
    return "" if len(choice.pruned) < piece.layers else "nothing is left to merge where all its layers are pruned"


def _words(graph: GraphFacts, name: str) -> str:
    return module_path(graph.nodes[name]) if name in graph.nodes else repr(name)


def _is_prunable(graph: GraphFacts, node: fx.Node) -> bool:
    conv = known_layer(graph.gm, node)
    if not isinstance(conv, CONVOLUTIONS) or on_both_axes(conv, "stride") != (1, 1):
        return False
    return graph.shape(node.name) == graph.shape(node.all_input_nodes[0].name)


def _pruned(graph: GraphFacts, choice: Merge) -> list[fx.Node]:
    """Return the nodes of the pruned convolutions in a graph.

    In a graph whose norms are folded, a convolution has the name of the norm that stood behind it. A choice made for
    that graph uses this name.
    """
    return [before_norms(graph.gm, graph.nodes[name]) for name in choice.pruned]


def _collapsed(choice: Merge, piece: Piece, *, device: str = "cpu") -> AffineConv:
    gm, nodes = piece.graph.gm, piece.graph.nodes
    skipped = set(with_norms(gm, _pruned(piece.graph, choice)))
    values = collapse(gm, nodes[piece.entry], piece.inner_nodes, piece.in_shape[1], device=device, skipped=skipped)
    return values[nodes[piece.pre_activation]]


def _prune(gm: fx.GraphModule, convolutions: Sequence[fx.Node]) -> None:
    for node in with_norms(gm, convolutions):
        redirect(node, target=add_module(gm, f"pruned_{node.name}", nn.Identity()), args=node.args[:1])


def _drop_activations(gm: fx.GraphModule, inner: list[fx.Node]) -> list[fx.Node]:
    """Remove activations and dropout from a span; return the nodes that stay."""
    kept = []
    for node in inner:
        pruned = isinstance(known_layer(gm, node), nn.Identity)  # may be the pre-activation, found by name later
        if role(gm, node) in (Role.ACTIVATION, Role.PASS) and not pruned:
            node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
        else:
            kept.append(node)
    return kept
