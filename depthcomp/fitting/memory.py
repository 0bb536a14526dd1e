"""How large a fit may be: what its least-squares system takes in memory, and what is done with one that takes too much.

A system of n unknowns per output channel keeps one Gram matrix of n x n for each fold of images, and its solution some
more. Where that is more than may be used, the kernel is a mixture of fewer patterns than it has pixels, as many as the
memory has room for: single pixels near its centre, and smooth waves over all of it (see
`depthcomp.fitting.ridge.patterns`). `scripts/bench_patterns.py` measures what that costs (`docs/patterns.txt`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from depthcomp.fitting.ridge import RidgeSystem, design_of
from depthcomp.latency.pricing import Candidate
from fx_passes import Slot
from fx_passes.affine import AffineConv, Pair

__all__ = ["MEMORY_MIB", "FitMemory"]

MEMORY_MIB = 1536
SOLVING = 5  # times the sums of a fold, which a solution holds besides those of the folds
PARTS = 3  # of the memory, one of them for a single fit: others' sums have room beside it, and it takes seconds
_MIB = 2**20

_Work = TypeVar("_Work")


@dataclass(frozen=True, slots=True)
class FitMemory:
    """The memory that fits may take.

    Attributes:
        folds: into how many parts the images are split.
        mib: most memory, in MiB; for a single fit, a third of it.
    """

    folds: int
    mib: float = MEMORY_MIB

    def system(self, entry: str, operator: AffineConv, kernel: Pair | None = None) -> RidgeSystem:
        """Return the system of a convolution that reads the tensor at `entry`, for its own or a larger kernel."""
        kernel = kernel or operator.kernel
        count = self.patterns(operator, kernel)
        return RidgeSystem(design_of(entry, operator), kernel, operator.in_channels, count=count)

    def patterns(self, operator: AffineConv, kernel: Pair | None = None) -> int:
        """Return for how many patterns there is room, at most the pixels of a convolution's own or a larger kernel."""
        channels, pixels = operator.in_channels // operator.groups, math.prod(kernel or operator.kernel)
        grams = 8 * operator.groups * (self.folds + SOLVING)
        return min(pixels, math.isqrt(int(self.mib * _MIB) // (PARTS * grams)) // channels)

    def is_whole(self, operator: AffineConv, kernel: Pair | None = None) -> bool:
        """Say whether there is room for all pixels of a convolution's own kernel or of a larger one."""
        return self.patterns(operator, kernel) == math.prod(kernel or operator.kernel)

    def passes(
        self, work: Iterable[_Work], system_of: Callable[[_Work], RidgeSystem], outputs_of: Callable[[_Work], int]
    ) -> Iterator[list[_Work]]:
        """Yield groups whose sums, and the largest one's solution, fit into memory together, the smallest first.

        Args:
            work: what is to be solved.
            system_of: returns its system.
            outputs_of: returns how many outputs are solved for, in all channels.
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
        """Return what the sums of a system take, and what its solution takes besides."""
        one = _gram_mib(system.unknowns, system.design.groups) + 8 * system.unknowns * outputs / _MIB
        return self.folds * one, SOLVING * one

    def fitting(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], tuple[str, ...]]:
        """Return the candidates that can be fitted, or need no fit, and what the user should know of the others."""
        fits = [slot for candidate in candidates for slot in candidate.slots]
        left_out = [slot for slot in fits if not self.patterns(slot.operator)]
        cut = [slot for slot in fits if 0 < self.patterns(slot.operator) < math.prod(slot.operator.kernel)]
        notes = []
        if cut:
            notes.append(
                f"{len(cut)} of {len(fits)} fits are mixtures of fewer patterns than their kernels have pixels, as the "
                f"whole systems take up to {self._whole_mib(cut)} MiB; {self._remedy(cut)}"
            )
        if left_out:
            notes.append(
                f"{len(left_out)} of {len(fits)} fits were left out: {self.mib:g} MiB have not even room for one pixel "
                f"of their kernels; {self._remedy(left_out)}"
            )
        solved = [c for c in candidates if all(self.patterns(slot.operator) for slot in c.slots)]
        return solved, tuple(notes)

    def _remedy(self, slots: Sequence[Slot]) -> str:
        return f"CalibratedImportance(memory_mib={self._whole_mib(slots)}) solves them whole, in more time"

    def _whole_mib(self, slots: Sequence[Slot]) -> int:
        """Return the memory in which all of these are solved whole."""
        operators = [slot.operator for slot in slots]
        largest = max(_gram_mib(math.prod(o.weight.shape[1:]), o.groups) for o in operators)
        return math.ceil(PARTS * (self.folds + SOLVING) * largest)


def _gram_mib(unknowns: int, groups: int) -> float:
    return 8 * groups * unknowns**2 / _MIB
