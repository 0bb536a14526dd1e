"""Slots: layers whose weights are solved for."""

from __future__ import annotations

from dataclasses import dataclass

from fx_passes.affine import AffineConv

__all__ = ["Slot", "Width"]

Width = tuple[str, int]
"""Name of a node, and the number of channels that its tensor keeps."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A layer whose weights are solved for: in the place of a span, or kept behind one.

    The network and its linearized form share the nodes that are named here.

    Attributes:
        node: name of the node whose tensor the layer computes; a norm or an inserted activation may follow the layer.
        entry: name of the node whose tensor the layer reads, before any padding.
        target: name of the node whose tensor in the original network the layer restores: `node`, or a sum of it.
        operator: the layer's shape, and its weights if it is kept.
        kept: whether the layer is the network's own; a solution then stays close to its weights.
        other: name of the other operand of the sum at `target`; None where `target` is no sum.
        widths: tensors before the layer that keep fewer channels than the network's.
        axis: axis of the channels in the tensors of these nodes: 1, or -1 for a linear layer.
    """

    node: str
    entry: str
    target: str
    operator: AffineConv
    kept: bool = False
    other: str | None = None
    widths: tuple[Width, ...] = ()
    axis: int = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the nodes whose tensors a fit needs."""
        return (self.entry,) if self.other is None else (self.entry, self.other)
