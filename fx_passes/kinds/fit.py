"""The kind `fit`: one convolution with fitted weights replaces a span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from fx_passes.affine import crop_kernel
from fx_passes.body import Body
from fx_passes.choice import End, Kernel, SpanChoice
from fx_passes.collapse import collapse
from fx_passes.ends import pre_activation_of, set_end
from fx_passes.facts import GraphFacts
from fx_passes.insertion import insert_convolution
from fx_passes.kinds.end_text import described_end, end_sign
from fx_passes.kinds.fields import parse_end, parse_kernel, parse_node, read_choice
from fx_passes.kinds.linearized import not_linearized, span_ends
from fx_passes.kinds.registry import Kind, register
from fx_passes.kinds.single_convolution import (
    body_of,
    end_obstacle,
    ends,
    inner_of,
    limit_obstacle,
    merge_into_one,
    odd,
    odd_sides,
    one_layer,
    size_text,
)
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import cover_places, module_path
from fx_passes.operators import before_norms, known_layer
from fx_passes.slots import Slot
from fx_passes.span import Piece
from fx_passes.spatial_layers import CONVOLUTIONS

__all__ = ["Fit"]


@dataclass(frozen=True, slots=True)
class Fit(SpanChoice):
    """A span becomes one convolution whose weights are fitted.

    Attributes:
        kernel: height and width of the convolution, both odd.
        end: what follows it.
    """

    kind: ClassVar[str] = "fit"
    kernel: Kernel
    end: End = "original"

    def __str__(self) -> str:
        return f"fit {size_text(self.kernel)} {self.place}{end_sign(self.end)}"


@register
class FitKind(Kind[Fit]):
    """Replaces spans by one fitted convolution, with any odd kernel inside the kernel of the span's collapse."""

    choice = Fit
    precedence = 20
    done = "fitted"
    explanation = "one convolution replaces the span, with the weights that best map its input to its output"

    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[Fit]:
        """Yield, for each possible end, the odd kernels within limits, the smallest first."""
        sizes = [size for size in _sizes(piece, limits) if not _obstacle(piece, size, limits)]
        for ending in ends(piece, limits) if sizes else ():
            yield from (Fit(piece.entry, piece.exit, size, ending) for size in sizes)

    def check(self, choice: Fit, piece: Piece) -> str:
        """Return why a piece cannot become the choice's convolution; empty where it can."""
        return _size_obstacle(piece, choice.kernel) or end_obstacle(piece, choice.end)

    def refusal(self, piece: Piece, limits: SpanLimits) -> str:
        """Return why no kernel size is possible."""
        obstacles = (_obstacle(piece, size, limits) for size in _sizes(piece, limits))
        return ", and ".join(dict.fromkeys(obstacles))

    def body(self, choice: Fit, piece: Piece) -> Body:
        """Return the convolution, and the activation inserted after it if there is one."""
        return body_of(piece, choice.kernel, choice.end)

    def slots(self, choice: Fit, piece: Piece) -> tuple[Slot, ...]:
        """Return one slot: the convolution from the entry to the pre-activation of the original."""
        operator = crop_kernel(piece.operator, choice.kernel)
        return (Slot(piece.pre_activation, piece.entry, piece.pre_activation, operator),)

    def linearize(self, copied: GraphFacts, choice: Fit, piece: Piece, *, exact_border: bool) -> None:
        """Replace the span by a convolution; its weights are the centre of the collapse until a fit or training."""
        gm, entry = copied.gm, copied.nodes[piece.entry]
        inner = set_end(gm, choice.end, inner_of(copied, piece), copied.nodes[piece.exit])
        guess = collapse(gm, entry, inner, piece.in_shape[1], largest_kernel=choice.kernel)[inner[-1]]
        padding = crop_kernel(piece.operator, choice.kernel).padding
        cover_places(inner[-1], inner)
        insert_convolution(gm, inner[-1], entry, replace(guess, padding=padding), f"fitted_{inner[-1].name}")

    def merge(self, linearized: GraphFacts, choice: Fit) -> None:
        """Fold the norm that training may have put behind the convolution."""
        merge_into_one(linearized, choice, choice.kernel)

    def solved_nodes(self, linearized: GraphFacts, choice: Fit) -> tuple[fx.Node, ...]:
        """Return the node of the convolution, or of the norm behind it."""
        gm = linearized.gm
        entry, exit_ = span_ends(linearized, choice)
        last = pre_activation_of(gm, exit_, entry)
        conv = before_norms(gm, last)
        padded = [conv, *conv.all_input_nodes]
        reads_entry = any(entry in node.all_input_nodes for node in padded)
        if not isinstance(known_layer(gm, conv), CONVOLUTIONS) or not reads_entry:
            raise not_linearized(choice, f"{module_path(last)} is no convolution of {module_path(entry)}")
        return (last,)

    def describe(self, choice: Fit) -> str:
        """Return words for the fit, its size, and its end if that is changed."""
        return f"{self.done} {size_text(choice.kernel)}{described_end(choice.end)}"

    def decode(self, fields: Mapping[str, Any]) -> Fit:
        """Return the choice with these stored fields."""
        return read_choice(
            Fit, fields, {"entry": parse_node, "exit": parse_node, "kernel": parse_kernel, "end": parse_end}
        )


def _sizes(piece: Piece, limits: SpanLimits) -> list[Kernel]:
    """Return the odd kernels inside the kernel of a piece's collapse, the smallest first."""
    height, width = piece.operator.kernel
    return [(min(side, odd(height)), min(side, odd(width))) for side in odd_sides(piece, limits)]


def _obstacle(piece: Piece, size: Kernel, limits: SpanLimits) -> str:
    return _size_obstacle(piece, size) or limit_obstacle(piece, size, limits)


def _size_obstacle(piece: Piece, size: Kernel) -> str:
    """Return why a piece cannot become one convolution of a size; empty where it can."""
    full = piece.operator.kernel
    if any(length % 2 == 0 for length in size):
        return f"a fitted kernel needs a central pixel, and {size_text(size)} has none; both sizes must be odd"
    if size[0] > full[0] or size[1] > full[1]:
        return f"its layers together read {size_text(full)} pixels, and a fitted kernel may be no larger"
    if piece.layers == 1 and size == full:
        return one_layer(piece)
    return ""
