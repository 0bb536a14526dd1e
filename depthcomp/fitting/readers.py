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
from depthcomp.latency.pricing import Candidate
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

    They are in the images' precision. Those stay as they are that memory has no room to solve whole, that read what is
    not finite, or that stand behind a fit without an activation at its end: what such a fit misses hardly depends on
    what it gives, so that a linear reader makes up for little of it. Where memory is not enough for all sums together,
    the images pass through the network several times.

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
    readings = _readings(gm, candidates, memory)
    passes = list(memory.passes(readings, lambda each: each.system, lambda each: each.place.operator.out_channels))
    done, total = itertools.count(1), len(passes) * len(calibration.batches)
    for several in passes:
        for number, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
            _accumulate(several, operators, Tail(gm, batch), calibration.least_fitted, seed + number, fold)
            progress(f"refitting readers, without fold {unseen + 1}", next(done), total)
        for reading in several:
            if reading.system.is_finite:
                operator = _solved(reading, unseen).to(calibration.batches[0])
                found[reading.candidate.choice][reading.place.core] = operator
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


def _accumulate(
    several: Sequence[_Reading],
    operators: Mapping[SpanChoice, AffineConv | None],
    tail: Tail,
    batches: int,
    seed: int,
    fold: int,
) -> None:
    """Add one of `batches` that make up a fit to the sums of all readers, none of which depends on the others."""
    for reading in several:
        place, system = reading.place, reading.system
        target = as_images(tail.value(place.target))
        samples = samples_per_batch(system.unknowns, batches)
        positions = sample_positions(target, samples, torch.Generator().manual_seed(seed))
        needed = {place.entry} if place.other is None else {place.entry, place.other}
        start = replacement(reading.candidate, operators[reading.candidate.choice], tail)
        now = {name: as_images(tensor) for name, tensor in tail.rerun_at(*start, needed).items()}
        wanted = positions.pixels(target)
        if place.other is not None:
            wanted = wanted - positions.pixels(now[place.other])
        system.accumulate(now[place.entry], {_TARGET: wanted}, positions, fold=fold)


def _solved(reading: _Reading, unseen: int) -> AffineConv:
    prior = reading.place.operator
    solved = reading.system.solve_without([unseen], [_TARGET], prior, match_variance=(), strengths=STRENGTHS)
    return solved[unseen][0]
