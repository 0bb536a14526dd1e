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
from depthcomp.fitting.candidates import Weights, replacement
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.expectation import expectation_of
from depthcomp.fitting.kept_slots import consumers_of
from depthcomp.fitting.leaning import prior_of, strengths_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import RidgeSystem, sample_positions
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress
from fx_passes import CapturedNetwork, Slot, SpanChoice
from fx_passes.affine import AffineConv
from fx_passes.slot_layers import as_images

__all__ = ["Refits", "refit_consumers", "restores_its_exit"]

_TARGET = "target"


Refits = dict[tuple[SpanChoice, int], dict[str, AffineConv]]
"""Refitted operators by node, for each choice and unseen fold."""


@dataclass(frozen=True, slots=True)
class _Consumer:
    """A kept layer that reads a candidate's change, with the system of its refits.

    Attributes:
        candidate: the candidate.
        weights: weights of its body.
        unseen: the folds to refit without, each by itself.
        slot: the layer.
        system: the sums.
    """

    candidate: Candidate
    weights: Weights
    unseen: tuple[int, ...]
    slot: Slot
    system: RidgeSystem


def refit_consumers(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    weights: Mapping[SpanChoice, Mapping[int, Weights]],
    calibration: CalibrationSet,
    unseen: Sequence[int],
    *,
    seed: int,
    memory: FitMemory,
    progress: Progress,
) -> Refits:
    """Return the refitted operators of the first layers behind each candidate, in the images' precision.

    A layer stays as it is where its system exceeds the memory, and where its inputs are not finite. It also stays
    behind a fit without an activation at its end: the fit's error hardly depends on its output, so a linear layer
    recovers little of it. Where the sums of all systems exceed the memory, the images pass through the network several
    times. A refit does not depend, to the bit, on which others there are.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates; each alone replaces its span.
        weights: weights of the candidates' bodies, by the fold that they have not seen.
        calibration: the images.
        unseen: folds; each has refits of its own, behind bodies that have not seen it either. It only chooses how
            strongly each refit leans to the layer's own weights.
        seed: seed of the sampled pixels.
        memory: the memory that refits may use.
        progress: called as (what, done, total).
    """
    found: Refits = {(candidate.choice, fold): {} for candidate in candidates for fold in unseen}
    consumers = _consumers(network, candidates, weights, unseen, memory)
    passes = list(memory.passes(consumers, lambda each: each.system, lambda each: each.slot.operator.out_channels))
    done, total = itertools.count(1), len(passes) * len(calibration.batches)
    for several in passes:
        for number, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
            _accumulate(several, Tail(network.gm, batch), calibration.least_fitted, seed + number, fold)
            progress(f"refitting consumers, {_without(unseen)}", next(done), total)
        for consumer in several:
            for fold in consumer.unseen if consumer.system.is_finite else ():
                operator = _solved(network, consumer, fold, calibration.precision).to(calibration.batches[0].real)
                found[consumer.candidate.choice, fold][consumer.slot.node] = operator
        several.clear()  # frees their sums for the next pass
    return found


def _consumers(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    weights: Mapping[SpanChoice, Mapping[int, Weights]],
    unseen: Sequence[int],
    memory: FitMemory,
) -> Iterator[_Consumer]:
    """Yield the consumers of candidates: one for each fold, or one for all where the body has no fitted weights."""
    found: dict[str, list[Slot]] = {}
    for candidate in candidates:
        exit_ = candidate.choice.exit
        if restores_its_exit(candidate):
            continue
        if exit_ not in found:
            found[exit_] = [slot for slot in consumers_of(network, exit_) if memory.is_whole(slot.operator)]
        for folds in ((fold,) for fold in unseen) if candidate.slots else (tuple(unseen),):
            for slot in found[exit_]:
                system = memory.system(slot.entry, slot.operator)
                yield _Consumer(candidate, weights[candidate.choice][folds[0]], folds, slot, system)


def restores_its_exit(candidate: Candidate) -> bool:
    """Say whether a solved convolution with nothing behind it aims at the tensor at the candidate's exit.

    The consumers of such a change are not refitted.
    """
    (last,) = candidate.body.graph.output_node().all_input_nodes
    return any((slot.node, slot.target) == (last.name, candidate.choice.exit) for slot in candidate.slots)


def _accumulate(consumers: Sequence[_Consumer], tail: Tail, batches: int, seed: int, fold: int) -> None:
    """Add a batch to the sums of all consumers; a refit sees at least `batches` batches."""
    for consumer in consumers:
        slot, system = consumer.slot, consumer.system
        target = as_images(tail.value(slot.target), slot.axis)
        samples = samples_per_batch(system.unknowns, batches)
        positions = sample_positions(target, samples, torch.Generator().manual_seed(seed))
        start = replacement(consumer.candidate, consumer.weights, tail)
        now = {name: as_images(tensor, slot.axis) for name, tensor in tail.rerun_at(*start, set(slot.reads)).items()}
        wanted = positions.pixels(target)
        if slot.other is not None:
            wanted = wanted - positions.pixels(now[slot.other])
        system.accumulate(now[slot.entry], {_TARGET: wanted}, positions, fold=fold)


def _solved(network: CapturedNetwork, consumer: _Consumer, unseen: int, precision: torch.dtype) -> AffineConv:
    slot = consumer.slot
    solved = consumer.system.expecting(expectation_of(network, slot.node)).solve_without(
        [unseen], [_TARGET], prior_of(slot), match_variance=(), strengths=strengths_of(slot, precision)
    )
    return solved[unseen][0]


def _without(unseen: Sequence[int]) -> str:
    return f"without fold {unseen[0] + 1}" if len(unseen) == 1 else "without each fold in turn"
