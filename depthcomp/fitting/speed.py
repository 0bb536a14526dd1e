"""Speed of the machine, from a short trial, and the work of fits: with both, a run can be foretold."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import shared_systems
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.latency.pricing import Candidate
from fx_passes import CapturedNetwork

__all__ = ["FitWork", "Speed", "fit_work", "speed_of"]

TRIALS = 3  # the fastest counts: other work on the machine only delays
SAMPLES, UNKNOWNS = 2048, 1024  # of the trial product
SOLUTIONS = 4  # a solution costs about as much as so many products of unknowns with unknowns


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of the machine.

    Attributes:
        batch_seconds: time of a forward of one calibration batch.
        multiply_adds_per_second: multiply-adds of fits in a second.
    """

    batch_seconds: float
    multiply_adds_per_second: float

    def seconds(self, *, forwards: float, multiply_adds: float) -> float:
        """Return the time of forwards of one batch and of multiply-adds of fits."""
        return forwards * self.batch_seconds + multiply_adds / self.multiply_adds_per_second


@dataclass(frozen=True, slots=True)
class FitWork:
    """Work of fits.

    Attributes:
        passes: number of passes over all images, as memory holds the sums of a part of the fits.
        multiply_adds: number of multiply-adds of their sums and solutions.
    """

    passes: int
    multiply_adds: float


def speed_of(network: CapturedNetwork, calibration: CalibrationSet) -> Speed:
    """Return the speed of this machine on a network and its images, after a few forwards of one batch."""
    batch = calibration.batches[0]
    patches = torch.randn(SAMPLES, UNKNOWNS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward, product = _fastest(lambda: batch.through(network.gm)), _fastest(lambda: patches.T @ patches)
    return Speed(forward, SAMPLES * UNKNOWNS**2 / product)


def fit_work(candidates: Sequence[Candidate], calibration: CalibrationSet, memory: FitMemory) -> FitWork:
    """Return the work of fitting candidates."""
    shared = shared_systems(candidates, memory)
    passes = list(memory.passes(shared, lambda each: each.system, lambda each: each.outputs))
    total = 0.0
    for system in (each.system for each in shared):
        samples = samples_per_batch(system.unknowns, calibration.least_fitted) * len(calibration.batches)
        total += (samples + SOLUTIONS * system.unknowns) * system.unknowns**2 * system.design.groups
    return FitWork(len(passes), total)


def _fastest(run: Callable[[], Any]) -> float:
    """Return the time of the fastest of a few runs, in seconds."""
    found = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
