"""Base class of the choices for a span: its place and its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["End", "Kernel", "SpanChoice"]

Kernel = tuple[int, int]
"""Height and width."""

End = Literal["original", "inserted", "none"]
"""What follows a new convolution: the span's "original" activation (nothing, where it ends without one); an "inserted"
activation, of the kind that stands last inside the span; or "none", the original activation removed."""


@dataclass(frozen=True, slots=True)
class SpanChoice:
    """One way to realise the span between two tensors of a captured graph; each kind adds its own fields.

    Attributes:
        entry: name of the node whose tensor the span reads.
        exit: name of the node whose tensor the span produces, after the activation at its end.
        kind: name of the kind, under which `fx_passes.kinds` knows what the choice does.
    """

    entry: str
    exit: str
    kind: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.kind} {self.place}"

    @property
    def place(self) -> str:
        """The span, as a half-open interval of tensors."""
        return f"({self.entry} -> {self.exit}]"
