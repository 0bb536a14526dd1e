"""Fits of candidates to the original network's tensors, in few passes over the images.

Fits that read a tensor with equal kernel, stride, centre and groups share one Gram matrix; their targets may differ.
The weights of a candidate do not depend on which others are fitted, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.data.inputs import Inputs
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.execution import Replacements, Tail, record
from depthcomp.fitting.expectation import expectation_of
from depthcomp.fitting.leaning import prior_of, strengths_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import Design, RidgeSystem, design_of, sample_positions
from depthcomp.fitting.sampling import samples_per_batch
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, Slot, SpanChoice
from fx_passes.affine import AffineConv, Pair
from fx_passes.graph_edit import nodes_by_name
from fx_passes.kinds import kind_of
from fx_passes.operators import Role
from fx_passes.slot_layers import as_images, channel_axis, run_operator

__all__ = [
    "SharedSystem",
    "Weights",
    "design_of_slot",
    "fit_candidates",
    "refitted_layers",
    "replacement",
    "shared_systems",
    "whole_states",
]

Weights = Mapping[str, AffineConv]
"""Convolutions of a body, by node name."""


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


def fit_candidates(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    memory: FitMemory | None = None,
    channels: ChannelOrders | None = None,
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
        channels: decides which inner channels stay; None to look at the images for that.
    """
    report, memory = progress or silent, memory or FitMemory(calibration.count)
    channels = channels or ChannelOrders(network, calibration, seed=seed, memory=memory, progress=report)
    solver = _Solver(network, calibration, channels, seed)
    systems = shared_systems(candidates, memory)
    passes = list(memory.passes(systems, lambda each: each.system, lambda each: each.outputs))
    systems.clear()
    for number, several in enumerate(passes):
        solver.solve(several, _in_pass(report, f"pass {number + 1} of {len(passes)}"))
        several.clear()  # frees their sums for the next pass
    return {candidate.choice: solver.weights(candidate) for candidate in candidates}


class _Solver:
    """Solves fits, each without each judging fold, and keeps the solutions.

    Args:
        network: the captured network.
        calibration: the images.
        channels: decides which inner channels stay.
        seed: seed of the sampled pixels.
    """

    def __init__(
        self, network: CapturedNetwork, calibration: CalibrationSet, channels: ChannelOrders, seed: int
    ) -> None:
        self._network, self._calibration, self._channels, self._seed = network, calibration, channels, seed
        self._unseen: dict[int, int | None] = {fold: fold for fold in calibration.judges} or {0: None}
        self._solved: dict[tuple[SpanChoice, str], Mapping[int, AffineConv]] = {}  # by key and unseen fold

    def solve(self, several: Sequence[SharedSystem], report: Progress) -> None:
        """Solve the fits of one pass over the images."""
        batches = self._calibration.batches
        for done, (batch, fold) in enumerate(zip(batches, self._calibration.folds, strict=True)):
            _accumulate(self._network, several, batch, self._calibration.least_fitted, self._seed + done, fold)
            report("fitting", done + 1, len(batches))
        together = [(shared.system, fits) for shared in several for fits in _alike(shared.members)]
        for done, (system, fits) in enumerate(together):
            found = (self._of_some_inputs if fits[0].slot.widths else self._of_all_inputs)(system, fits)
            for number, fit in enumerate(fits):
                like, padding = batches[0].real, fit.slot.operator.padding
                self._solved[fit.key] = {
                    fold: replace(solved[number], padding=padding).to(like) for fold, solved in found.items()
                }
            report("solving", done + 1, len(together))

    def weights(self, candidate: Candidate) -> Mapping[int, Weights]:
        """Return the weights of a candidate's body, by the fold that they have not seen."""
        given = kind_of(candidate.choice).weights(candidate.choice, candidate.piece)
        fits = [_Fit(candidate.choice, slot) for slot in candidate.slots]
        folds = self._unseen if fits else range(self._calibration.count)
        return {fold: {**given, **{fit.slot.node: self._weight(fit, fold) for fit in fits}} for fold in folds}

    def _weight(self, fit: _Fit, fold: int) -> AffineConv:
        """Return a fit's operator; a layer too large to be solved keeps its weights for the channels that stay."""
        if fit.key in self._solved:
            return self._solved[fit.key][fold]
        operator, kept = fit.slot.operator, self._channels.left(fit.slot.entry, fit.slot.widths, self._unseen[fold])
        return replace(operator, weight=operator.weight * kept[:, None, None])

    def _of_all_inputs(self, system: RidgeSystem, fits: Sequence[_Fit]) -> Mapping[int, Sequence[AffineConv]]:
        """Return the operators of fits of one design, shape and prior, by the fold that they have not seen."""
        slot, targets, judges = fits[0].slot, [fit.slot.target for fit in fits], self._calibration.judges
        matched = set() if slot.kept else whole_states(self._network, targets)
        options: dict[str, Any] = {"match_variance": matched, "strengths": self._strengths(slot)}
        if judges:
            solved = system.solve_without(judges, targets, prior_of(slot), **options)
            return {fold: solved[fold] for fold in judges}
        return {0: system.solve(targets, prior_of(slot), judges=(), **options)}

    def _of_some_inputs(self, system: RidgeSystem, fits: Sequence[_Fit]) -> Mapping[int, Sequence[AffineConv]]:
        """Return the operators of fits whose inputs have fewer channels; the weights of all others are zero."""
        slot, own, found = fits[0].slot, prior_of(fits[0].slot), dict[int, Sequence[AffineConv]]()
        expecting, chosen = system.alone(slot.target).expecting(expectation_of(self._network, slot.node)), None
        for fold, unseen in self._unseen.items():
            kept = self._channels.left(slot.entry, slot.widths, unseen)
            some, prior = expecting.restricted(kept), replace(own, weight=own.weight[:, kept])
            if chosen is None:  # the first fold chooses for all
                judges = [] if unseen is None else [unseen]
                chosen = some.best_strengths([slot.target], prior, judges, self._strengths(slot))[slot.target]
            solved = some.solve_without([unseen], [slot.target], prior, match_variance=(), strengths=[chosen])
            (narrow,) = solved[unseen]
            weight = narrow.weight.new_zeros(own.weight.shape)
            weight[:, kept] = narrow.weight
            found[fold] = [replace(narrow, weight=weight)] * len(fits)
        return found

    def _strengths(self, slot: Slot) -> Sequence[float]:
        return strengths_of(slot, self._calibration.precision)


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


def refitted_layers(gm: fx.GraphModule, operators: Mapping[str, AffineConv]) -> Replacements:
    """Return functions that compute kept layers with other operators, given by node name."""
    nodes = nodes_by_name(gm)
    return {
        name: functools.partial(run_operator, operator, axis=channel_axis(gm, nodes[name]))
        for name, operator in operators.items()
    }


def design_of_slot(slot: Slot) -> Design:
    """Return the design of a slot's fit; fits of equal design share a system."""
    return design_of(slot.entry, slot.operator)


def whole_states(network: CapturedNetwork, names: Iterable[str]) -> set[str]:
    """Return the names of tensors that are no summand; the unexplained part of a summand is better left out."""
    nodes, roles = network.nodes, network.roles
    return {name for name in names if [roles[user.name] for user in nodes[name].users] != [Role.ADD]}


def shared_systems(candidates: Sequence[Candidate], memory: FitMemory) -> list[SharedSystem]:
    """Return the systems of all fits; fits of one design and kernel share one. Large kept layers have none."""
    together: dict[tuple[Design, Pair, int], list[_Fit]] = {}
    for fit in (_Fit(candidate.choice, slot) for candidate in candidates for slot in candidate.slots):
        if not fit.slot.kept or memory.is_whole(fit.slot.operator):
            slot = fit.slot
            together.setdefault((design_of_slot(slot), slot.operator.kernel, slot.axis), []).append(fit)
    return [
        SharedSystem(memory.system(design.entry, members[0].slot.operator), tuple(members))
        for (design, _, _), members in together.items()
    ]


def _accumulate(
    network: CapturedNetwork, several: Sequence[SharedSystem], batch: Inputs, batches: int, seed: int, fold: int
) -> None:
    """Add a batch to the sums of all systems; a fit sees at least `batches` batches."""
    wanted = {name for shared in several for name in (shared.system.design.entry, *shared.targets)}
    tensors = record(network.gm, batch, wanted)
    for shared in several:
        system, names, axis = shared.system, shared.targets, shared.members[0].slot.axis
        generator = torch.Generator().manual_seed(seed)
        some = as_images(tensors[names[0]], axis)
        positions = sample_positions(some, samples_per_batch(system.unknowns, batches), generator)
        targets = {name: positions.pixels(as_images(tensors[name], axis)) for name in names}
        system.accumulate(as_images(tensors[system.design.entry], axis), targets, positions, fold=fold)


def _alike(fits: Sequence[_Fit]) -> list[list[_Fit]]:
    """Return fits of one system in groups of equal shape and prior, which share a factorisation."""
    groups: dict[tuple[object, ...], list[_Fit]] = {}
    for fit in fits:
        own = fit.slot.node if fit.slot.kept else None
        groups.setdefault((tuple(fit.slot.operator.weight.shape), own, fit.slot.widths), []).append(fit)
    return list(groups.values())
