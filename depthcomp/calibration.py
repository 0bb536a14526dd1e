"""Calibration images in folds: what is fitted on some folds is judged on another that it has not seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthcomp.data import BATCH_SIZE, in_batches

__all__ = ["LAYOUTS", "CalibrationSet", "Layout", "cross_validated", "separate"]

FOLDS = 3  # each fit then sees two thirds of the images, and every image judges


@dataclass(frozen=True, slots=True)
class Layout:
    """How images lie in memory.

    Attributes:
        largest: most images in a batch.
        memory: the order of their dimensions.
    """

    largest: int
    memory: torch.memory_format


FASTEST = Layout(BATCH_SIZE, torch.channels_last)  # convolutions on a CPU take half the time
LAYOUTS = (FASTEST, Layout(BATCH_SIZE, torch.contiguous_format), Layout(1, torch.contiguous_format))
"""From the fastest to the one that any network captured for one image takes."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Batches of images in folds.

    Attributes:
        batches: images (n, c, h, w) each, those of a fold in random order.
        folds: the fold that each batch belongs to.
        judges: folds whose images judge, each by fits on all other folds; empty where there is one image alone,
            which then judges what was fitted on it.
        withheld: a fold that is never fitted on, not even in the end.
    """

    batches: tuple[Tensor, ...]
    folds: tuple[int, ...]
    judges: tuple[int, ...]
    withheld: int | None = None

    @property
    def count(self) -> int:
        """How many folds there are."""
        return max(self.folds) + 1

    @property
    def least_fitted(self) -> int:
        """How many batches the fits without a judging fold see, the largest such fold left out."""
        return len(self.batches) - max((self.folds.count(fold) for fold in self.judges), default=0)

    def judging(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the fold and the images of each judging batch, the folds taking turns."""
        turns = itertools.zip_longest(*(self.fold(fold) for fold in self.judges or (0,)))
        for turn in turns:
            for fold, batch in zip(self.judges or (0,), turn, strict=True):
                if batch is not None:
                    yield fold, batch

    def fold(self, fold: int) -> list[Tensor]:
        """Return the batches of one fold."""
        return [batch for batch, number in zip(self.batches, self.folds, strict=True) if number == fold]

    def thinned(self, count: int) -> CalibrationSet:
        """Return about `count` of the batches, or all where there are fewer, the folds thinned to equal shares."""
        share = count / self.count
        kept = {
            fold: found[:: max(1, round(len(found) / share))]
            for fold in range(self.count)
            for found in [self.fold(fold)]
        }
        batches = tuple(batch for fold in kept.values() for batch in fold)
        folds = tuple(number for number, fold in kept.items() for _ in fold)
        return replace(self, batches=batches, folds=folds)


def cross_validated(images: Tensor, seed: int, layout: Layout = FASTEST) -> CalibrationSet:
    """Return images (n, c, h, w) in up to three folds that take turns in judging.

    A fold is a contiguous part: neighbours, which may be crops of one photo or frames of one film, stay together
    except at the borders between folds.
    """
    count = min(FOLDS, len(images))
    parts = [images[start * len(images) // count : (start + 1) * len(images) // count] for start in range(count)]
    return _in_folds(parts, tuple(range(count)) if count > 1 else (), None, seed, layout)


def separate(images: Tensor, judging: Tensor, seed: int, layout: Layout = FASTEST) -> CalibrationSet:
    """Return a set whose fits are on `images` and judged on `judging`, (n, c, h, w) both."""
    return _in_folds([images, judging], (1,), 1, seed, layout)


def _in_folds(
    parts: list[Tensor], judges: tuple[int, ...], withheld: int | None, seed: int, layout: Layout
) -> CalibrationSet:
    generator = torch.Generator().manual_seed(seed)
    mixed = [
        in_batches(
            part[torch.randperm(len(part), generator=generator).to(part.device)].to(memory_format=layout.memory),
            layout.largest,
        )
        for part in parts
    ]
    batches = tuple(batch for part in mixed for batch in part)
    return CalibrationSet(batches, tuple(fold for fold, part in enumerate(mixed) for _ in part), judges, withheld)
