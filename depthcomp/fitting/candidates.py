"""Fits of candidates to the original network's tensors, in few passes over the images.

Fits that read a tensor with equal kernel, stride, centre and groups share one Gram matrix; their targets may differ.
The weights of a candidate do not depend on which others are fitted, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.execution import Tail, record
from depthcomp.fitting.leaning import prior_of, strengths_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import Design, RidgeSystem, design_of, sample_positions
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, Slot, SpanChoice
from fx_passes.affine import AffineConv, Pair
from fx_passes.kinds import kind_of
from fx_passes.operators import Role

__all__ = [
    "SharedSystem",
    "Weights",
    "design_of_slot",
    "fit_candidates",
    "replacement",
    "samples_per_batch",
    "shared_systems",
    "whole_states",
]

Weights = Mapping[str, AffineConv]
"""Convolutions of a body, by node name."""

SAMPLES_PER_UNKNOWN: float = 3  # measured by scripts/bench_samples.py: more hardly lowers the loss
LEAST_SAMPLES = 2048  # pixels that each fit samples on top of these


@dataclass(frozen=True, slots=True)
class _Fit:
    """A slot of a choice."""

    choice: SpanChoice
    slot: Slot

    @property
    def key(self) -> tuple[SpanChoice, str]:
        """The choice, and the name of the slot's node."""
        return self.choice, self.slot.node


@dataclass(frozen=True, slots=True)
class SharedSystem:
    """Fits that share a system.

    Attributes:
        system: the least-squares system.
        members: the fits.
    """

    system: RidgeSystem
    members: tuple[_Fit, ...]

    @property
    def targets(self) -> list[str]:
        """Names of the target tensors."""
        return sorted({fit.slot.target for fit in self.members})

    @property
    def outputs(self) -> int:
        """Number of channels of all targets together."""
        return sum({fit.slot.target: fit.slot.operator.out_channels for fit in self.members}.values())


_Solved = dict[tuple[SpanChoice, str], Mapping[int, AffineConv]]  # by key and unseen fold


def fit_candidates(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    memory: FitMemory | None = None,
) -> dict[SpanChoice, Mapping[int, Weights]]:
    """Return the weights of each candidate's body, by the judging fold that they have not seen.

    Solved weights have the images' precision; weights computed from the network's own have float64. Where the sums of
    all systems exceed the memory, the images pass through the network several times. Where a single system exceeds
    it, its kernel is solved as fewer patterns than pixels.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates to fit; `memory` has room for at least one pixel of each slot's kernel.
        calibration: the images.
        seed: seed of the sampled pixels.
        progress: called as (what, done, total).
        memory: the memory that fits may use; None for the default.
    """
    report, memory = progress or silent, memory or FitMemory(calibration.count)
    shared = shared_systems(candidates, memory)
    passes = list(memory.passes(shared, lambda each: each.system, lambda each: each.outputs))
    solved: _Solved = {}
    for number, several in enumerate(passes):
        where = f"pass {number + 1} of {len(passes)}"
        solved.update(_fitted(network, several, calibration, seed, _in_pass(report, where)))
        several.clear()  # frees their sums for the next pass
    return {candidate.choice: _weights(candidate, solved, calibration.count) for candidate in candidates}


def _weights(candidate: Candidate, solved: _Solved, folds: int) -> Mapping[int, Weights]:
    """Return the weights of a candidate's body, by the fold that they have not seen."""
    given = kind_of(candidate.choice).weights(candidate.choice, candidate.piece)
    fits = [_Fit(candidate.choice, slot) for slot in candidate.slots]
    seen = solved[fits[0].key] if fits else range(folds)
    return {fold: {**given, **{fit.slot.node: solved[fit.key][fold] for fit in fits}} for fold in seen}


def _fitted(
    network: CapturedNetwork, several: Sequence[SharedSystem], calibration: CalibrationSet, seed: int, report: Progress
) -> _Solved:
    """Return the operators of the fits of one pass over the images."""
    operators: _Solved = {}
    for done, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
        _accumulate(network, several, batch, calibration.least_fitted, seed + done, fold)
        report("fitting", done + 1, len(calibration.batches))
    together = [(shared.system, fits) for shared in several for fits in _alike(shared.members)]
    for done, (system, fits) in enumerate(together):
        operators.update(_solve(network, system, fits, calibration))
        report("solving", done + 1, len(together))
    return operators


def _in_pass(report: Progress, where: str) -> Progress:
    return lambda what, done, total: report(f"{what}, {where}", done, total)


def replacement(candidate: Candidate, weights: Weights, tail: Tail) -> tuple[str, Tensor]:
    """Return the node name where a candidate's change begins, and the changed tensor there.

    Args:
        candidate: the candidate whose body replaces its span.
        weights: weights of the body.
        tail: recorded forward of the original network.
    """
    body = candidate.body
    return body.at, body.run(tail.gm, tail.value(candidate.choice.entry), weights)


def design_of_slot(slot: Slot) -> Design:
    """Return the design of a slot's fit; fits of equal design share a system."""
    return design_of(slot.entry, slot.operator)


def whole_states(network: CapturedNetwork, names: Iterable[str]) -> set[str]:
    """Return the names of tensors that are no summand; the unexplained part of a summand is better left out."""
    nodes, roles = network.nodes, network.roles
    return {name for name in names if [roles[user.name] for user in nodes[name].users] != [Role.ADD]}


def samples_per_batch(unknowns: int, batches: int) -> int:
    """Return the number of pixels to sample from each batch for a system of `unknowns`."""
    return int(SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1


def shared_systems(candidates: Sequence[Candidate], memory: FitMemory) -> list[SharedSystem]:
    """Return the systems of all fits; fits of one design and kernel share one."""
    together: dict[tuple[Design, Pair], list[_Fit]] = {}
    for fit in (_Fit(candidate.choice, slot) for candidate in candidates for slot in candidate.slots):
        together.setdefault((design_of_slot(fit.slot), fit.slot.operator.kernel), []).append(fit)
    return [
        SharedSystem(memory.system(design.entry, members[0].slot.operator), tuple(members))
        for (design, _), members in together.items()
    ]


def _accumulate(
    network: CapturedNetwork, several: Sequence[SharedSystem], batch: Tensor, batches: int, seed: int, fold: int
) -> None:
    """Add a batch to the sums of all systems; a fit sees at least `batches` batches."""
    wanted = {name for shared in several for name in (shared.system.design.entry, *shared.targets)}
    tensors = record(network.gm, batch, wanted)
    for shared in several:
        system, names = shared.system, shared.targets
        generator = torch.Generator().manual_seed(seed)
        positions = sample_positions(tensors[names[0]], samples_per_batch(system.unknowns, batches), generator)
        targets = {name: positions.pixels(tensors[name]) for name in names}
        system.accumulate(tensors[system.design.entry], targets, positions, fold=fold)


def _alike(fits: Sequence[_Fit]) -> list[list[_Fit]]:
    """Return fits of one system in groups of equal shape and prior, which share a factorisation."""
    groups: dict[tuple[object, ...], list[_Fit]] = {}
    for fit in fits:
        own = fit.slot.node if fit.slot.kept else None
        groups.setdefault((tuple(fit.slot.operator.weight.shape), own), []).append(fit)
    return list(groups.values())


def _solve(network: CapturedNetwork, system: RidgeSystem, fits: Sequence[_Fit], calibration: CalibrationSet) -> _Solved:
    """Return the operators of fits of one design, shape and prior, by the fold that they have not seen."""
    first, like = fits[0].slot, calibration.batches[0]
    targets, prior, strengths = [fit.slot.target for fit in fits], prior_of(first), strengths_of(first)
    matched = set() if first.kept else whole_states(network, targets)
    if calibration.judges:
        solved = system.solve_without(calibration.judges, targets, prior, match_variance=matched, strengths=strengths)
    else:
        solved = {0: system.solve(targets, prior, judges=(), match_variance=matched, strengths=strengths)}
    return {
        fit.key: {
            fold: replace(found[index], padding=fit.slot.operator.padding).to(like) for fold, found in solved.items()
        }
        for index, fit in enumerate(fits)
    }
