"""The convolutions of all candidates, fitted towards the original network's tensors from one pass over the images.

All fits that read one tensor alike share the sums of one least-squares system, whatever their kernels and targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

__all__ = ["Weights", "design_of_slot", "fit_candidates", "replacement", "samples_per_batch", "whole_states"]

Weights = Mapping[str, AffineConv]
"""The convolutions of a body, by the names of their nodes."""

SAMPLES_PER_UNKNOWN = 5  # pixels per regression
LEAST_SAMPLES = 2048


@dataclass(frozen=True, slots=True)
class _Fit:
    """A slot of one choice."""

    choice: SpanChoice
    slot: Slot

    @property
    def key(self) -> tuple[SpanChoice, str]:
        """The choice, and the name of the slot's node."""
        return self.choice, self.slot.node


@dataclass(frozen=True, slots=True)
class _Shared:
    """Fits that share a system.

    Attributes:
        system: large enough for each of them.
        members: the fits.
    """

    system: RidgeSystem
    members: tuple[_Fit, ...]

    @property
    def targets(self) -> list[str]:
        """The tensors that they aim at."""
        return sorted({fit.slot.target for fit in self.members})

    @property
    def outputs(self) -> int:
        """How many channels they have together."""
        return sum({fit.slot.target: fit.slot.operator.out_channels for fit in self.members}.values())


_Solved = dict[tuple[SpanChoice, str], Mapping[int, AffineConv]]  # by key, and by the fold that was not seen


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

    Solved ones are in the images' precision; those that follow from the network's own are in float64. Where memory is
    not enough for all sums together, the images pass through the network several times; where it is not enough for one
    system, its kernel has fewer patterns than pixels.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: what to fit; `memory` has room for a pixel of each slot's kernel at least.
        calibration: the images.
        seed: of the sampled pixels.
        progress: called as (what, done, total).
        memory: what the fits may take; None for the default.
    """
    report, memory = progress or silent, memory or FitMemory(calibration.count)
    fits = [_Fit(candidate.choice, slot) for candidate in candidates for slot in candidate.slots]
    passes = list(memory.passes(_sharing(fits, memory), lambda shared: shared.system, lambda shared: shared.outputs))
    solved: _Solved = {}
    for number, several in enumerate(passes):
        where = f"pass {number + 1} of {len(passes)}"
        solved.update(_fitted(network, several, calibration, seed, _in_pass(report, where)))
        several.clear()  # their sums make room for the next
    return {candidate.choice: _weights(candidate, solved, calibration.count) for candidate in candidates}


def _weights(candidate: Candidate, solved: _Solved, folds: int) -> Mapping[int, Weights]:
    """Return the weights of a body, by the fold that they have not seen."""
    given = kind_of(candidate.choice).weights(candidate.choice, candidate.piece)
    fits = [_Fit(candidate.choice, slot) for slot in candidate.slots]
    seen = solved[fits[0].key] if fits else range(folds)
    return {fold: {**given, **{fit.slot.node: solved[fit.key][fold] for fit in fits}} for fold in seen}


def _fitted(
    network: CapturedNetwork, several: Sequence[_Shared], calibration: CalibrationSet, seed: int, report: Progress
) -> _Solved:
    """Return the operators of fits whose sums are taken in one pass over the images."""
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
    """Return the name of the node where a candidate's change begins, and the tensor that stands there then.

    Args:
        candidate: what takes its span's place.
        weights: of its body.
        tail: the original's forward.
    """
    body = candidate.body
    return body.at, body.run(tail.gm, tail.value(candidate.choice.entry), weights)


def design_of_slot(slot: Slot) -> Design:
    """Return what the fit of a slot reads; fits of one design are computed together."""
    return design_of(slot.entry, slot.operator)


def whole_states(network: CapturedNetwork, names: Iterable[str]) -> set[str]:
    """Return those of the tensors that are no summand: a summand's unexplained part is better left out."""
    nodes, roles = network.nodes, network.roles
    return {name for name in names if [roles[user.name] for user in nodes[name].users] != [Role.ADD]}


def samples_per_batch(unknowns: int, batches: int) -> int:
    """Return how many pixels to take from each batch for a system of so many unknowns."""
    return (SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1


def _sharing(fits: Sequence[_Fit], memory: FitMemory) -> Iterator[_Shared]:
    """Yield the fits of each design with a system; each kernel has its own where all together take too much."""
    by_design: dict[Design, list[_Fit]] = {}
    for fit in fits:
        by_design.setdefault(design_of_slot(fit.slot), []).append(fit)
    for design, members in by_design.items():
        operator, largest = members[0].slot.operator, _largest_kernel(members)
        if memory.is_whole(operator, largest):
            yield _Shared(memory.system(design.entry, operator, largest), tuple(members))
            continue
        by_kernel: dict[Pair, list[_Fit]] = {}
        for fit in members:
            by_kernel.setdefault(fit.slot.operator.kernel, []).append(fit)
        for some in by_kernel.values():
            yield _Shared(memory.system(design.entry, some[0].slot.operator), tuple(some))


def _largest_kernel(fits: Sequence[_Fit]) -> Pair:
    heights, widths = zip(*(fit.slot.operator.kernel for fit in fits), strict=True)
    return max(heights), max(widths)


def _accumulate(
    network: CapturedNetwork, several: Sequence[_Shared], batch: Tensor, batches: int, seed: int, fold: int
) -> None:
    """Add one of `batches` that make up a fit to the sums of all systems, none of which depends on the others."""
    wanted = {name for shared in several for name in (shared.system.design.entry, *shared.targets)}
    tensors = record(network.gm, batch, wanted)
    for shared in several:
        system, names = shared.system, shared.targets
        generator = torch.Generator().manual_seed(seed)
        positions = sample_positions(tensors[names[0]], samples_per_batch(system.unknowns, batches), generator)
        targets = {name: positions.pixels(tensors[name]) for name in names}
        system.accumulate(tensors[system.design.entry], targets, positions, fold=fold)


def _alike(fits: Sequence[_Fit]) -> list[list[_Fit]]:
    """Return fits of one design in groups that share one factorisation: of one shape, and with one prior."""
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
