"""Refits of the kept layers that consume a candidate's change, for its score.

A compression refits the kept layers behind its changes (`depthcomp.fitting.kept_slots`), so a choice is scored after
a refit too. The first layers behind a change recover most of the loss. Example: the consumer of a dropped depthwise
convolution mixes all of its channels anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import Weights, replacement, samples_per_batch
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.kept_slots import as_images, consumers_of
from depthcomp.fitting.leaning import prior_of, strengths_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import RidgeSystem, sample_positions
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress
from fx_passes import CapturedNetwork, Slot, SpanChoice
from fx_passes.affine import AffineConv

__all__ = ["refit_consumers"]

_TARGET = "target"


@dataclass(frozen=True, slots=True)
class _Consumer:
    """A kept layer that reads a candidate's change, with the system of its refit."""

    candidate: Candidate
    slot: Slot
    system: RidgeSystem


def refit_consumers(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    weights: Mapping[SpanChoice, Weights],
    calibration: CalibrationSet,
    unseen: int,
    *,
    seed: int,
    memory: FitMemory,
    progress: Progress,
) -> dict[SpanChoice, dict[str, AffineConv]]:
    """Return the refitted operators of the first layers behind each candidate, by node, in the images' precision.

    A layer stays as it is where its system exceeds the memory, and where its inputs are not finite. It also stays
    behind a fit without an activation at its end: the fit's error hardly depends on its output, so a linear layer
    recovers little of it. Where the sums of all systems exceed the memory, the images pass through the network several
    times.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates; each alone replaces its span.
        weights: weights of the candidates' bodies.
        calibration: the images.
        unseen: a fold that no refit sees; it only chooses how strongly each refit leans to the layer's own weights.
        seed: seed of the sampled pixels.
        memory: the memory that refits may use.
        progress: called as (what, done, total).
    """
    found: dict[SpanChoice, dict[str, AffineConv]] = {candidate.choice: {} for candidate in candidates}
    consumers = _consumers(network, candidates, memory)
    passes = list(memory.passes(consumers, lambda each: each.system, lambda each: each.slot.operator.out_channels))
    done, total = itertools.count(1), len(passes) * len(calibration.batches)
    for several in passes:
        for number, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
            _accumulate(several, weights, Tail(network.gm, batch), calibration.least_fitted, seed + number, fold)
            progress(f"refitting consumers, without fold {unseen + 1}", next(done), total)
        for consumer in several:
            if consumer.system.is_finite:
                operator = _solved(consumer, unseen).to(calibration.batches[0])
                found[consumer.candidate.choice][consumer.slot.node] = operator
        several.clear()  # frees their sums for the next pass
    return found


def _consumers(network: CapturedNetwork, candidates: Sequence[Candidate], memory: FitMemory) -> Iterator[_Consumer]:
    found: dict[str, list[Slot]] = {}
    for candidate in candidates:
        exit_ = candidate.choice.exit
        if _restores_its_exit(candidate):
            continue
        if exit_ not in found:
            found[exit_] = [slot for slot in consumers_of(network, exit_) if memory.is_whole(slot.operator)]
        for slot in found[exit_]:
            yield _Consumer(candidate, slot, memory.system(slot.entry, slot.operator))


def _restores_its_exit(candidate: Candidate) -> bool:
    """Say whether a solved convolution with nothing behind it aims at the tensor at the candidate's exit."""
    (last,) = candidate.body.graph.output_node().all_input_nodes
    return any((slot.node, slot.target) == (last.name, candidate.choice.exit) for slot in candidate.slots)


def _accumulate(
    several: Sequence[_Consumer],
    weights: Mapping[SpanChoice, Weights],
    tail: Tail,
    batches: int,
    seed: int,
    fold: int,
) -> None:
    """Add a batch to the sums of all consumers; a refit sees at least `batches` batches."""
    for consumer in several:
        slot, system = consumer.slot, consumer.system
        target = as_images(tail.value(slot.target))
        samples = samples_per_batch(system.unknowns, batches)
        positions = sample_positions(target, samples, torch.Generator().manual_seed(seed))
        start = replacement(consumer.candidate, weights[consumer.candidate.choice], tail)
        now = {name: as_images(tensor) for name, tensor in tail.rerun_at(*start, set(slot.reads)).items()}
        wanted = positions.pixels(target)
        if slot.other is not None:
            wanted = wanted - positions.pixels(now[slot.other])
        system.accumulate(now[slot.entry], {_TARGET: wanted}, positions, fold=fold)


def _solved(consumer: _Consumer, unseen: int) -> AffineConv:
    slot = consumer.slot
    solved = consumer.system.solve_without(
        [unseen], [_TARGET], prior_of(slot), match_variance=(), strengths=strengths_of(slot)
    )
    return solved[unseen][0]
