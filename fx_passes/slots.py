"""Layers whose weights are solved for."""

from __future__ import annotations

from dataclasses import dataclass

from fx_passes.affine import AffineConv

__all__ = ["Slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A layer whose weights are solved for, in the place of a span or kept behind one.

    All names are those of nodes that the network and its linearized form share.

    Attributes:
        node: whose tensor the layer computes; a norm or an inserted activation may follow the layer there.
        entry: whose tensor the layer reads, before any padding.
        target: whose tensor of the original network the layer restores: its own, or the sum that it goes into.
        operator: the layer's shape; its weights, too, where it is kept.
        kept: whether the layer was there before, so that a solution leans to its weights.
        other: the other operand of the sum at `target`; None where the layer goes into none.
    """

    node: str
    entry: str
    target: str
    operator: AffineConv
    kept: bool = False
    other: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the nodes whose tensors a fit needs."""
        return (self.entry,) if self.other is None else (self.entry, self.other)
