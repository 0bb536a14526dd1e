"""The kind `drop`: a span becomes the identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fx_passes.body import Body, BodyBuilder
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import add_module, redirect
from fx_passes.kinds.fields import parse_node, read_choice
from fx_passes.kinds.linearized import not_linearized, span_ends
from fx_passes.kinds.registry import Kind, register
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import module_path
from fx_passes.operators import known_layer
from fx_passes.span import Piece

__all__ = ["Drop"]


@dataclass(frozen=True, slots=True)
class Drop(SpanChoice):
    """A span becomes the identity."""

    kind: ClassVar[str] = "drop"


@register
class DropKind(Kind[Drop]):
    """Drops spans that keep the shape of their tensor."""

    choice = Drop
    precedence = 30
    done = "dropped"
    explanation = "the span passes its input on"

    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[Drop]:
        """Yield the choice if the piece keeps the shape of its tensor."""
        choice = Drop(piece.entry, piece.exit)
        if not self.check(choice, piece):
            yield choice

    def check(self, choice: Drop, piece: Piece) -> str:
        """Return why a piece cannot become the identity; empty where it can."""
        if piece.graph.shape(piece.exit) != piece.in_shape:
            return "it changes the shape of its tensor"
        return ""

    def refusal(self, piece: Piece, limits: SpanLimits) -> str:
        """Return why a piece cannot become the identity."""
        return self.check(Drop(piece.entry, piece.exit), piece)

    def body(self, choice: Drop, piece: Piece) -> Body:
        """Return the empty body."""
        builder = BodyBuilder(piece.entry, piece.in_shape)
        return builder.build(builder.entry, at=piece.exit)

    def linearize(self, copied: GraphFacts, choice: Drop, piece: Piece, *, exact_border: bool) -> None:
        """Replace the exit by an identity of the entry."""
        entry, exit_ = copied.nodes[piece.entry], copied.nodes[piece.exit]
        redirect(exit_, target=add_module(copied.gm, f"dropped_{exit_.name}", nn.Identity()), args=(entry,))

    def merge(self, linearized: GraphFacts, choice: Drop) -> None:
        """Check that the identity is in place; `fx_passes.merge` removes it with all other identities."""
        entry, exit_ = span_ends(linearized, choice)
        if not isinstance(known_layer(linearized.gm, exit_), nn.Identity) or exit_.args[0] is not entry:
            raise not_linearized(choice, f"{module_path(exit_)} is no identity of {module_path(entry)}")

    def decode(self, fields: Mapping[str, Any]) -> Drop:
        """Return the choice with these stored fields."""
        return read_choice(Drop, fields, {"entry": parse_node, "exit": parse_node})
