"""The convolutions of all candidates, fitted towards the original network's tensors from one pass over the images.

All fits that read one tensor alike share the sums of one least-squares system, whatever their kernels and targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.execution import Tail, record
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.ridge import Design, RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import SpanChoice
from fx_passes.affine import AffineConv, Pair
from fx_passes.collapse import collapse
from fx_passes.operators import Role, role

__all__ = ["design_of_fit", "fit_candidates", "replacement", "samples_per_batch", "whole_states"]

SAMPLES_PER_UNKNOWN = 5  # pixels per regression
LEAST_SAMPLES = 2048


@dataclass(frozen=True, slots=True)
class _Shared:
    """Fits that share a system.

    Attributes:
        system: large enough for each of them.
        members: the fits.
    """

    system: RidgeSystem
    members: tuple[Candidate, ...]

    @property
    def cores(self) -> list[str]:
        """The tensors that they aim at."""
        return sorted({candidate.span.core for candidate in self.members})

    @property
    def outputs(self) -> int:
        """How many channels they have together."""
        return sum({c.span.core: _operator(c).out_channels for c in self.members}.values())


def fit_candidates(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    memory: FitMemory | None = None,
) -> dict[SpanChoice, Mapping[int, AffineConv | None]]:
    """Return the operators of each candidate, by the judging fold that they have not seen, in the images' precision.

    The operator of a dropped span is None. Where memory is not enough for all sums together, the images pass through
    the network several times; where it is not enough for one system, its kernel has fewer patterns than pixels.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        candidates: what to fit, or else merge or drop; `memory` has room for a pixel of each fit's kernel at least.
        calibration: the images.
        seed: of the sampled pixels.
        progress: called as (what, done, total).
        memory: what the fits may take; None for the default.
    """
    report, memory = progress or silent, memory or FitMemory(calibration.count)
    operators: dict[SpanChoice, Mapping[int, AffineConv | None]] = {}
    for candidate in candidates:
        if candidate.choice.kind != "fit":
            operator = _merged(gm, candidate) if candidate.choice.kind == "merge" else None
            operators[candidate.choice] = dict.fromkeys(range(calibration.count), operator)
    fits = [candidate for candidate in candidates if candidate.choice.kind == "fit"]
    passes = list(memory.passes(_sharing(fits, memory), lambda shared: shared.system, lambda shared: shared.outputs))
    for number, several in enumerate(passes):
        where = f"pass {number + 1} of {len(passes)}"
        operators.update(_fitted(gm, several, calibration, seed, _in_pass(report, where)))
        several.clear()  # their sums make room for the next
    return operators


def _fitted(
    gm: fx.GraphModule, several: Sequence[_Shared], calibration: CalibrationSet, seed: int, report: Progress
) -> dict[SpanChoice, Mapping[int, AffineConv | None]]:
    """Return the operators of fits whose sums are taken in one pass over the images."""
    operators: dict[SpanChoice, Mapping[int, AffineConv | None]] = {}
    for done, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
        _accumulate(gm, several, batch, calibration.least_fitted, seed + done, fold)
        report("fitting", done + 1, len(calibration.batches))
    together = [(shared.system, fits) for shared in several for fits in _same_shape(shared.members)]
    for done, (system, fits) in enumerate(together):
        operators.update(_solve(gm, system, fits, calibration))
        report("solving", done + 1, len(together))
    return operators


def _in_pass(report: Progress, where: str) -> Progress:
    return lambda what, done, total: report(f"{what}, {where}", done, total)


def replacement(candidate: Candidate, operator: AffineConv | None, tail: Tail) -> tuple[str, Tensor]:
    """Return the name of the node where a candidate's change begins, and the tensor that stands there then.

    Args:
        candidate: what takes its span's place.
        operator: its convolution; None where the span is dropped.
        tail: the original's forward.
    """
    entry = tail.value(candidate.span.entry)
    if operator is None:
        return candidate.span.exit, entry
    return candidate.span.core, operator.to(entry)(entry)


def design_of_fit(candidate: Candidate) -> Design:
    """Return what the fit of a candidate reads; fits of one design are computed together."""
    return design_of(candidate.span.entry, _operator(candidate))


def whole_states(gm: fx.GraphModule, names: Iterable[str]) -> set[str]:
    """Return those of the tensors that are no summand: a summand's unexplained part is better left out."""
    nodes = {node.name: node for node in gm.graph.nodes}
    return {name for name in names if [role(gm, user) for user in nodes[name].users] != [Role.ADD]}


def samples_per_batch(unknowns: int, batches: int) -> int:
    """Return how many pixels to take from each batch for a system of so many unknowns."""
    return (SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1


def _sharing(fits: Sequence[Candidate], memory: FitMemory) -> Iterator[_Shared]:
    """Yield the fits of each design with a system; each kernel has its own where all together take too much."""
    by_design: dict[Design, list[Candidate]] = {}
    for candidate in fits:
        by_design.setdefault(design_of_fit(candidate), []).append(candidate)
    for design, members in by_design.items():
        operator, largest = _operator(members[0]), _largest_kernel(members)
        if memory.is_whole(operator, largest):
            yield _Shared(memory.system(design.entry, operator, largest), tuple(members))
            continue
        by_kernel: dict[Pair, list[Candidate]] = {}
        for candidate in members:
            by_kernel.setdefault(_operator(candidate).kernel, []).append(candidate)
        for some in by_kernel.values():
            yield _Shared(memory.system(design.entry, _operator(some[0])), tuple(some))


def _largest_kernel(fits: Sequence[Candidate]) -> Pair:
    heights, widths = zip(*(_operator(candidate).kernel for candidate in fits), strict=True)
    return max(heights), max(widths)


def _accumulate(
    gm: fx.GraphModule, several: Sequence[_Shared], batch: Tensor, batches: int, seed: int, fold: int
) -> None:
    """Add one of `batches` that make up a fit to the sums of all systems, none of which depends on the others."""
    tensors = record(gm, batch, {name for shared in several for name in (shared.system.design.entry, *shared.cores)})
    for shared in several:
        system, cores = shared.system, shared.cores
        generator = torch.Generator().manual_seed(seed)
        positions = sample_positions(tensors[cores[0]], samples_per_batch(system.unknowns, batches), generator)
        targets = {name: positions.pixels(tensors[name]) for name in cores}
        system.accumulate(tensors[system.design.entry], targets, positions, fold=fold)


def _same_shape(fits: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return fits of one design in groups of one weight shape, which share one factorisation."""
    groups: dict[tuple[int, ...], list[Candidate]] = {}
    for candidate in fits:
        groups.setdefault(tuple(_operator(candidate).weight.shape), []).append(candidate)
    return list(groups.values())


def _solve(
    gm: fx.GraphModule, system: RidgeSystem, fits: Sequence[Candidate], calibration: CalibrationSet
) -> dict[SpanChoice, Mapping[int, AffineConv | None]]:
    """Return the operators of fits of one design and shape, by the fold that they have not seen."""
    cores, prior = [candidate.span.core for candidate in fits], starting_point(_operator(fits[0]))
    matched, like = whole_states(gm, cores), calibration.batches[0]
    if calibration.judges:
        solved = system.solve_without(calibration.judges, cores, prior, match_variance=matched)
    else:
        solved = {0: system.solve(cores, prior, judges=(), match_variance=matched)}
    return {
        candidate.choice: {
            fold: replace(found[index], padding=_operator(candidate).padding).to(like) for fold, found in solved.items()
        }
        for index, candidate in enumerate(fits)
    }


def _merged(gm: fx.GraphModule, candidate: Candidate) -> AffineConv:
    nodes = {node.name: node for node in gm.graph.nodes}
    span = candidate.span
    inner = [nodes[name] for name in span.nodes[: span.nodes.index(span.core) + 1]]
    channels = _operator(candidate).in_channels
    return collapse(gm, nodes[span.entry], inner, channels)[nodes[span.core]]


def _operator(candidate: Candidate) -> AffineConv:
    assert candidate.operator is not None  # only dropped spans have none
    return candidate.operator
