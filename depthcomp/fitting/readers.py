"""Kept convolutions that read what a choice changes, refitted for that choice alone.

A compression refits the kept convolutions behind its changes (`depthcomp.fitting.compensation`), so a choice costs what
is left of the loss after that. What the first of them can make up for is most of it: a dropped depthwise convolution,
for one, whose reader mixes all of its channels anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import replacement, samples_per_batch
from depthcomp.fitting.compensation import STRENGTHS, KeptConvolution, as_images, readers_of
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import RidgeSystem, sample_positions
from depthcomp.pricing import Candidate
from depthcomp.progress import Progress
from fx_passes import SpanChoice
from fx_passes.affine import AffineConv

__all__ = ["refit_readers"]

_TARGET = "target"


@dataclass(frozen=True, slots=True)
class _Reading:
    """A kept convolution that reads a candidate's change, and the equations of its refit."""

    candidate: Candidate
    place: KeptConvolution
    system: RidgeSystem


def refit_readers(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    operators: Mapping[SpanChoice, AffineConv | None],
    calibration: CalibrationSet,
    unseen: int,
    *,
    seed: int,
    memory: FitMemory,
    progress: Progress,
) -> dict[SpanChoice, dict[str, AffineConv]]:
    """Return for each candidate the new operators of the first convolutions behind it, by node.

    They are in the images' precision. Those that memory has no room to solve whole stay as they are, and so do all
    behind a fit without an activation at its end: what such a fit misses is uncorrelated with what it gives, so that no
    linear reader can make up for it. Where memory is not enough for all sums together, the images pass through the
    network several times.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        candidates: the candidates, each of which alone takes its span's place.
        operators: their convolutions; None where a span is dropped.
        calibration: the images.
        unseen: a fold that no refit sees; it only judges how strongly each leans to its own weights.
        seed: of the sampled pixels.
        memory: what the refits may take.
        progress: called as (what, done, total).
    """
    found: dict[SpanChoice, dict[str, AffineConv]] = {candidate.choice: {} for candidate in candidates}
    passes = list(memory.passes(_readings(gm, candidates, memory), lambda reading: reading.system))
    done, total = itertools.count(1), len(passes) * len(calibration.batches)
    for several in passes:
        for number, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
            tail = Tail(gm, batch)
            for reading in several:
                samples = samples_per_batch(reading.system.unknowns, calibration.least_fitted)
                _accumulate(reading, operators[reading.candidate.choice], tail, samples, seed + number, fold)
            progress(f"refitting readers, without fold {unseen + 1}", next(done), total)
        for reading in several:
            place = reading.place
            solved = reading.system.solve_without(
                [unseen], [_TARGET], place.operator, match_variance=(), strengths=STRENGTHS
            )
            found[reading.candidate.choice][place.core] = solved[unseen][0].to(calibration.batches[0])
        several.clear()  # their sums make room for the next
    return found


def _readings(gm: fx.GraphModule, candidates: Sequence[Candidate], memory: FitMemory) -> Iterator[_Reading]:
    readers: dict[str, list[KeptConvolution]] = {}
    for candidate in candidates:
        exit_ = candidate.span.exit
        if candidate.choice.kind == "fit" and candidate.span.core == exit_:
            continue
        if exit_ not in readers:
            readers[exit_] = [place for place in readers_of(gm, exit_) if memory.is_whole(place.operator)]
        for place in readers[exit_]:
            yield _Reading(candidate, place, memory.system(place.entry, place.operator))


def _accumulate(reading: _Reading, operator: AffineConv | None, tail: Tail, samples: int, seed: int, fold: int) -> None:
    """Add so many pixels of a batch to the sums of a reader."""
    place, system = reading.place, reading.system
    wanted = as_images(tail.value(place.target))
    positions = sample_positions(wanted, samples, torch.Generator().manual_seed(seed))
    pixels = positions.pixels(wanted)
    needed = {place.entry} if place.other is None else {place.entry, place.other}
    now = tail.rerun_at(*replacement(reading.candidate, operator, tail), needed)
    if place.other is not None:
        pixels = pixels - positions.pixels(as_images(now[place.other]))
    system.accumulate(as_images(now[place.entry]), {_TARGET: pixels}, positions, fold=fold)
