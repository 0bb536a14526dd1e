"""Limits on the choices for spans: length, kernel size, cost, ends and kinds."""

from __future__ import annotations

from dataclasses import dataclass

from depthcomp_errors import PlanError
from fx_passes.choice import End

__all__ = ["SpanLimits"]


@dataclass(frozen=True, slots=True)
class SpanLimits:
    """Limits on the choices that are enumerated; their number grows linearly with depth.

    Attributes:
        longest_span: most units that one choice may replace.
        largest_kernel: largest height or width of a new convolution's kernel; its square for a kernel over signals.
        largest_mac_growth: most multiply-adds of a new convolution, relative to those of its span.
        layer_pruning: whether convolutions may be pruned so that the others merge into a smaller kernel.
        other_ends: what may follow a new convolution besides what follows its span.
        skips_pixels: whether a fitted or pruned kernel may be smaller than its stride, so that nothing reads some
            pixels that the layers before compute.
        kinds: names of the kinds to choose from; None for all.
    """

    longest_span: int = 6
    largest_kernel: int = 7
    largest_mac_growth: float = 2.0
    layer_pruning: bool = True
    other_ends: tuple[End, ...] = ("inserted", "none")
    skips_pixels: bool = True
    kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("longest_span", "largest_kernel"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise PlanError(f"{name} (={value!r}) must be a whole number from 1 on")
        if not self.largest_mac_growth >= 0:  # as NaN is not
            raise PlanError(f"largest_mac_growth (={self.largest_mac_growth!r}) must be a number from 0 on")
        named = isinstance(self.kinds, tuple) and all(isinstance(name, str) for name in self.kinds)
        if self.kinds is not None and not (named and self.kinds):
            raise PlanError(f"kinds (={self.kinds!r}) must be a tuple of names of kinds, at least one, or None for all")
        if not set(self.other_ends) <= {"inserted", "none"}:
            raise PlanError(f"other_ends (={self.other_ends!r}) may hold 'inserted' and 'none'")
