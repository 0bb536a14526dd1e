"""Calibration images in folds, so that a fit on some folds is judged on another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthcomp.data.batches import batch_size, in_batches
from depthcomp.data.input_kind import IMAGES
from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import DEFAULT_LOSS, OutputLoss
from depthcomp.fingerprint import fingerprint

__all__ = ["CalibrationSet", "Layout", "calibration_hash", "cross_validated", "layouts", "separate"]

FOLDS = 3  # each fit sees two thirds of the images, and every image judges


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of images in memory.

    Attributes:
        largest: most images in a batch.
        memory: the order of their dimensions.
    """

    largest: int
    memory: torch.memory_format


def layouts(images: Inputs) -> tuple[Layout, ...]:
    """Return layouts for images (n, c, h, w), from the fastest to the one that every captured network takes.

    Only images have their channels last, not signals, volumes and vectors.
    """
    largest = batch_size(images)
    fastest = [Layout(largest, torch.channels_last)]  # convolutions on a CPU take half the time
    return (
        *(fastest if any(tensor.ndim == IMAGES for tensor in images.tensors) else ()),
        Layout(largest, torch.contiguous_format),
        Layout(1, torch.contiguous_format),
    )


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Batches of images in folds.

    Attributes:
        batches: batches of images, or of several inputs, in random order within a fold.
        folds: the fold of each batch.
        judges: folds that judge fits on all other folds; empty for a single image, which judges fits on itself.
        withheld: a fold that no fit sees, not even the last one.
        labels: the class of each image (n,) of each batch; None where there are no labels.
        loss: the loss of a changed network's outputs.
    """

    batches: tuple[Inputs, ...]
    folds: tuple[int, ...]
    judges: tuple[int, ...]
    withheld: int | None = None
    labels: tuple[Tensor, ...] | None = None
    loss: OutputLoss = DEFAULT_LOSS

    @property
    def precision(self) -> torch.dtype:
        """Precision of the images, in which the network computes."""
        return self.batches[0].real.dtype

    @property
    def count(self) -> int:
        """Number of folds."""
        return max(self.folds) + 1

    @property
    def least_fitted(self) -> int:
        """Number of batches that a fit without a judging fold sees at least."""
        return len(self.batches) - max((self.folds.count(fold) for fold in self.judges), default=0)

    def judging(self) -> Iterator[tuple[int, Inputs]]:
        """Yield the fold and the images of each judging batch, the folds in turns."""
        return ((fold, self.batches[index]) for fold, index in self._turns())

    def judging_labels(self) -> Iterator[Tensor | None]:
        """Yield the labels of each judging batch in the order of `judging`, None where there are none."""
        return (None if self.labels is None else self.labels[index] for _, index in self._turns())

    def _turns(self) -> Iterator[tuple[int, int]]:
        """Yield the fold and the index of each judging batch."""
        turns = itertools.zip_longest(*(self._indices(fold) for fold in self.judges or (0,)))
        for turn in turns:
            for fold, index in zip(self.judges or (0,), turn, strict=True):
                if index is not None:
                    yield fold, index

    def fold(self, fold: int) -> list[Inputs]:
        """Return the batches of one fold."""
        return [self.batches[index] for index in self._indices(fold)]

    def _indices(self, fold: int) -> list[int]:
        return [index for index, number in enumerate(self.folds) if number == fold]

    def thinned(self, count: int) -> CalibrationSet:
        """Return a set with about `count` of the batches, or all where there are fewer, in equal shares by fold."""
        share = count / self.count
        kept = [
            index
            for fold in range(self.count)
            for found in [self._indices(fold)]
            for index in found[:: max(1, round(len(found) / share))]
        ]
        return replace(
            self,
            batches=tuple(self.batches[index] for index in kept),
            folds=tuple(self.folds[index] for index in kept),
            labels=None if self.labels is None else tuple(self.labels[index] for index in kept),
        )


def cross_validated(
    images: Tensor | Inputs, seed: int, layout: Layout | None = None, labels: Tensor | None = None
) -> CalibrationSet:
    """Return images in up to three folds, which judge in turn.

    A fold is a contiguous part, so neighbours stay together except at its borders: they may be crops of one photo or
    frames of one film.
    """
    images = Inputs.of(images)
    count = min(FOLDS, len(images))
    borders = [part * len(images) // count for part in range(count + 1)]
    parts = [images[start:stop] for start, stop in itertools.pairwise(borders)]
    classes = None if labels is None else [labels[start:stop] for start, stop in itertools.pairwise(borders)]
    return _in_folds(parts, classes, tuple(range(count)) if count > 1 else (), None, seed, layout)


def separate(
    images: Tensor | Inputs,
    judging: Tensor | Inputs,
    seed: int,
    layout: Layout | None = None,
    labels: tuple[Tensor, Tensor] | None = None,
) -> CalibrationSet:
    """Return a set that fits on `images` and judges on `judging`; labels for both or neither."""
    return _in_folds(
        [Inputs.of(images), Inputs.of(judging)], None if labels is None else [*labels], (1,), 1, seed, layout
    )


def _in_folds(
    parts: list[Inputs],
    labels: list[Tensor] | None,
    judges: tuple[int, ...],
    withheld: int | None,
    seed: int,
    layout: Layout | None,
) -> CalibrationSet:
    layout = layouts(parts[0])[0] if layout is None else layout
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(part), generator=generator).to(part.real.device) for part in parts]
    mixed = [
        in_batches(part[order].laid_out(layout.memory), layout.largest)
        for part, order in zip(parts, orders, strict=True)
    ]
    batches = tuple(batch for part in mixed for batch in part)
    classes = None
    if labels is not None:
        pairs = zip(labels, orders, strict=True)
        classes = tuple(
            batch for part, order in pairs for batch in torch.tensor_split(part[order], -(-len(part) // layout.largest))
        )
    folds = tuple(fold for fold, part in enumerate(mixed) for _ in part)
    return CalibrationSet(batches, folds, judges, withheld, classes)


def calibration_hash(calibration: CalibrationSet) -> str:
    """Return a hash of images in their folds, with their labels if any, and of the loss."""
    roles = json.dumps([calibration.folds, calibration.judges, calibration.withheld])
    return fingerprint(roles, calibration.batches, calibration.labels or (), *calibration.loss.rules())
