"""Memory limit of fits.

A system of n unknowns per output channel keeps an n x n Gram matrix for each fold of images, and its solution keeps
several more. Where they exceed the limit, the kernel is solved as fewer patterns than pixels, as many as fit: single
pixels near its centre, and smooth waves over all of it (`depthcomp.fitting.ridge.patterns`).
`scripts/bench_patterns.py` measures the loss of accuracy (`docs/patterns.txt`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from depthcomp.fitting.ridge import RidgeSystem, design_of
from depthcomp.latency.pricing import Candidate
from fx_passes import Slot
from fx_passes.affine import AffineConv

__all__ = ["MEMORY_MIB", "FitMemory"]

MEMORY_MIB = 1536
SAMPLES = 0.5  # samples that wait to be summed, as a share of the sums: as many as unknowns, in single precision
SOLVING = 5  # a solution keeps this many times the sums of one fold, besides the sums of all folds
PARTS = 3  # a single fit may use one of this many parts: it leaves room for others, and takes only seconds
_MIB = 2**20

_Work = TypeVar("_Work")


@dataclass(frozen=True, slots=True)
class FitMemory:
    """The memory that fits may use.

    Attributes:
        folds: number of folds of the images.
        mib: the limit in MiB; a single fit may use a third of it.
    """

    folds: int
    mib: float = MEMORY_MIB

    def system(self, entry: str, operator: AffineConv) -> RidgeSystem:
        """Return the system of a convolution that reads the tensor at `entry`."""
        count = self.patterns(operator)
        return RidgeSystem(design_of(entry, operator), operator.kernel, operator.in_channels, count=count)

    def patterns(self, operator: AffineConv) -> int:
        """Return how many patterns fit, at most the pixels of a convolution's kernel."""
        channels, pixels = operator.in_channels // operator.groups, math.prod(operator.kernel)
        grams = 8 * operator.groups * (self.folds + SOLVING)
        return min(pixels, math.isqrt(int(self.mib * _MIB) // (PARTS * grams)) // channels)

    def is_whole(self, operator: AffineConv) -> bool:
        """Return whether all pixels of a convolution's kernel fit."""
        return self.patterns(operator) == math.prod(operator.kernel)

    def passes(
        self, work: Iterable[_Work], system_of: Callable[[_Work], RidgeSystem], outputs_of: Callable[[_Work], int]
    ) -> Iterator[list[_Work]]:
        """Yield groups of items whose sums and largest solution fit into memory together, the smallest items first.

        Args:
            work: items to solve.
            system_of: returns an item's system.
            outputs_of: returns an item's number of output channels.
        """
        group: list[_Work] = []
        used = 0.0
        sized = [(item, *self.mib_of(system_of(item), outputs_of(item))) for item in work]
        for item, sums, solving in sorted(sized, key=lambda each: each[1]):
            if group and used + sums + solving > self.mib:
                yield group
                group, used = [], 0.0
            group, used = [*group, item], used + sums
        if group:
            yield group

    def mib_of(self, system: RidgeSystem, outputs: int) -> tuple[float, float]:
        """Return two sizes in MiB: a system's sums with the samples that wait, and what its solution adds."""
        one = _gram_mib(system.unknowns, system.design.groups) + 8 * system.unknowns * outputs / _MIB
        return (1 + SAMPLES) * self.folds * one, SOLVING * one

    def fitting(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], tuple[str, ...]]:
        """Return the candidates that can be fitted or need no fit, and notes for the user on the others.

        A kept layer that is too large to be solved stays as it is.
        """
        fits = [slot for candidate in candidates for slot in candidate.slots if not slot.kept]
        left_out = [slot for slot in fits if not self.patterns(slot.operator)]
        cut = [slot for slot in fits if 0 < self.patterns(slot.operator) < math.prod(slot.operator.kernel)]
        notes = []
        if cut:
            notes.append(
                f"{len(cut)} of {len(fits)} fits solve fewer patterns than their kernels have pixels, as whole kernels "
                f"need up to {self._whole_mib(cut)} MiB; {self._remedy(cut)}"
            )
        if left_out:
            notes.append(
                f"{len(left_out)} of {len(fits)} fits were left out, as {self.mib:g} MiB are too little for even one "
                f"pixel of their kernels; {self._remedy(left_out)}"
            )
        solved = [c for c in candidates if all(slot.kept or self.patterns(slot.operator) for slot in c.slots)]
        return solved, tuple(notes)

    def _remedy(self, slots: Sequence[Slot]) -> str:
        return f"CurvatureImportance(memory_mib={self._whole_mib(slots)}) solves whole kernels, but takes longer"

    def _whole_mib(self, slots: Sequence[Slot]) -> int:
        """Return the limit in MiB under which all slots are solved whole."""
        operators = [slot.operator for slot in slots]
        largest = max(_gram_mib(math.prod(o.weight.shape[1:]), o.groups) for o in operators)
        return math.ceil(PARTS * (self.folds + SOLVING) * largest)


def _gram_mib(unknowns: int, groups: int) -> float:
    return 8 * groups * unknowns**2 / _MIB
