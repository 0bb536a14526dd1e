"""Number of pixels that a fit samples."""

from __future__ import annotations

__all__ = ["samples_per_batch"]

SAMPLES_PER_UNKNOWN: float = 3  # measured by scripts/bench_samples.py: more hardly lowers the loss
LEAST_SAMPLES = 2048  # pixels that each fit samples on top of these


def samples_per_batch(unknowns: int, batches: int) -> int:
    """Return the number of pixels to sample from each batch for a system of `unknowns`."""
    return int(SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1
