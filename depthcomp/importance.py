"""What a choice costs in loss: the rise of the divergence from the original network's output.

`calibrated` needs no labels and no training. For every candidate the fitted convolution (or the exact merge, or
identity) takes its span's place, the rest of the network stays as it was, and the outputs on held-out images
are compared. Importance is lower-is-better; the sum over a plan's choices stands for the plan's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from depthcomp.execution import Stream, Tail, record
from depthcomp.fit import Design, RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.pricing import Candidate
from fx_passes import Plan, SpanChoice, linearize, placed_convolutions
from fx_passes.affine import AffineConv
from fx_passes.collapse import collapse
from fx_passes.operators import Role, role

__all__ = ["calibrated", "divergence", "fit_candidates", "refit", "unknowns"]

LARGEST_SYSTEM = 3000  # unknowns per output channel; the Gram matrix then has 72 MB and is solved in seconds
LEAST_SCORED = 64  # candidates that see all held-out images
MEMORY_BYTES = 2**30  # for the Gram matrices of one pass over the data
SAMPLES_PER_UNKNOWN = 5  # pixels per regression
LEAST_SAMPLES = 2048

Progress = Callable[[str, int, int], None]


def divergence(original: Any, changed: Any) -> float:
    """Return how far `changed` is from `original`, the outputs of two networks on the same images.

    For one tensor of class scores (n, classes) this is the mean KL(softmax original || softmax changed) in
    nats; for any other output, the squared error relative to the original's variance, averaged over tensors.
    """
    pairs = [
        (a, b)
        for a, b in zip(tree_leaves(original), tree_leaves(changed), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if len(pairs) == 1 and pairs[0][0].ndim == 2 and pairs[0][0].shape[1] > 1:
        scores, other = (F.log_softmax(t.double(), dim=1) for t in pairs[0])
        return float(F.kl_div(other, scores, log_target=True, reduction="batchmean"))
    errors = [(a - b).square().mean() / a.var(correction=0).clamp_min(1e-12) for a, b in pairs]
    return float(torch.stack(errors).mean()) if errors else 0.0


def calibrated(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    batches: Sequence[Tensor],
    held_out: Sequence[Tensor],
    savings_ms: Mapping[SpanChoice, float],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[SpanChoice, float]:
    """Return the loss of each candidate; those whose least-squares system is too large are left out.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        candidates: what to score.
        batches: images for the fits, (n, c, h, w) each.
        held_out: other images, on which the losses are taken by successive halving: all candidates see the first
            batch, and of each batch's candidates the half with the lower loss per saved ms sees the next.
        savings_ms: what each choice saves, in ms.
        seed: for the sampled pixels.
        progress: called as (what, done, total).
    """
    report = progress or (lambda what, done, total: None)
    operators = fit_candidates(gm, candidates, batches, seed=seed, progress=report)
    losses: dict[SpanChoice, list[float]] = {choice: [] for choice in operators}
    scored = [candidate for candidate in candidates if candidate.choice in operators]
    for index, batch in enumerate(held_out):
        tail = Tail(gm, batch)
        for done, candidate in enumerate(scored):
            losses[candidate.choice].append(_loss(tail, candidate, operators[candidate.choice]))
            report(f"scoring, batch {index + 1} of {len(held_out)}", done + 1, len(scored))
        scored.sort(key=lambda candidate: _mean(losses[candidate.choice]) / savings_ms[candidate.choice])
        scored = scored[: max(LEAST_SCORED, (len(scored) + 1) // 2)]
    return {choice: max(_mean(found), 0.0) for choice, found in losses.items()}


def fit_candidates(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[SpanChoice, AffineConv | None]:
    """Return the float64 operator of each candidate, None for a dropped span.

    Fits whose system has more than 3,000 unknowns are left out. Memory for the sums is bounded by 1 GiB: where
    that is not enough, the images pass through the network several times.
    """
    report = progress or (lambda what, done, total: None)
    fits = [c for c in candidates if c.choice.kind == "fit" and unknowns(c) <= LARGEST_SYSTEM]
    operators: dict[SpanChoice, AffineConv | None] = {c.choice: None for c in candidates if c.choice.kind == "drop"}
    for candidate in candidates:
        if candidate.choice.kind == "merge":
            operators[candidate.choice] = _merged(gm, candidate)
    groups = list(_passes(fits))
    for number, group in enumerate(groups):
        systems = _systems(group)
        generator = torch.Generator().manual_seed(seed)
        for done, batch in enumerate(batches):
            _accumulate(gm, systems, batch, len(batches), generator, _fold(done, len(batches)))
            report(f"fitting, pass {number + 1} of {len(groups)}", done + 1, len(batches))
        together = _same_shape(group)
        for done, members in enumerate(together):
            operators.update(_solve(gm, systems[_design(members[0])][0], members))
            report(f"solving, pass {number + 1} of {len(groups)}", done + 1, len(together))
    return operators


def refit(
    gm: fx.GraphModule,
    plan: Plan,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> fx.GraphModule:
    """Return the linearized graph of `plan`, its fitted convolutions solved front to back.

    Each fit maps the tensor that the compressed network really has at the span's entry to the original
    network's tensor at its end, so that later fits make up for what earlier ones lost.
    """
    report = progress or (lambda what, done, total: None)
    linearized = linearize(gm, plan)
    generator = torch.Generator().manual_seed(seed)
    original, compressed = Stream(gm, batches), Stream(linearized, batches)
    placed = placed_convolutions(linearized, plan)
    for done, place in enumerate(placed):
        compressed.advance(place.entry)
        original.advance(place.core)
        system = RidgeSystem(design_of(place.entry, place.operator), place.operator.kernel, place.operator.in_channels)
        pairs = zip(compressed.values(place.entry), original.values(place.core), strict=True)
        for number, (inputs, targets) in enumerate(pairs):
            positions = sample_positions(targets, _samples(system.unknowns, len(batches)), generator)
            system.accumulate(inputs, {place.core: targets}, positions, fold=_fold(number, len(batches)))
        matched = _whole_states(gm, [place.core])
        place.load(system.solve([place.core], starting_point(place.operator), match_variance=matched)[0])
        report("refitting", done + 1, len(placed))
    return linearized


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _accumulate(
    gm: fx.GraphModule,
    systems: Mapping[Design, tuple[RidgeSystem, set[str]]],
    batch: Tensor,
    batches: int,
    generator: torch.Generator,
    fold: int,
) -> None:
    """Add one of several batches to the sums of all systems."""
    names = {name for design, (_, cores) in systems.items() for name in (design.entry, *cores)}
    tensors = record(gm, batch, names)
    for design, (system, cores) in systems.items():
        targets = {name: tensors[name] for name in sorted(cores)}
        first = next(iter(targets.values()))
        positions = sample_positions(first, _samples(system.unknowns, batches), generator)
        system.accumulate(tensors[design.entry], targets, positions, fold=fold)


def _same_shape(fits: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the fits in groups of one design and weight shape, which share one factorisation."""
    groups: dict[tuple[Design, tuple[int, ...]], list[Candidate]] = {}
    for candidate in fits:
        groups.setdefault((_design(candidate), tuple(_operator(candidate).weight.shape)), []).append(candidate)
    return list(groups.values())


def _solve(gm: fx.GraphModule, system: RidgeSystem, fits: Sequence[Candidate]) -> dict[SpanChoice, AffineConv]:
    """Return the operators of fits of one design and shape."""
    cores = [candidate.span.core for candidate in fits]
    operator = _operator(fits[0])
    solved = system.solve(cores, starting_point(operator), match_variance=_whole_states(gm, cores))
    return {
        candidate.choice: replace(found, padding=_operator(candidate).padding)
        for candidate, found in zip(fits, solved, strict=True)
    }


def _whole_states(gm: fx.GraphModule, names: Iterable[str]) -> set[str]:
    """Return those of the tensors that are no summand: a summand's unexplained part is better left out."""
    nodes = {node.name: node for node in gm.graph.nodes}
    return {name for name in names if [role(gm, user) for user in nodes[name].users] != [Role.ADD]}


def _samples(unknowns: int, batches: int) -> int:
    """Return how many pixels to take from each batch for a system of so many unknowns."""
    return (SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1


def _fold(batch: int, batches: int) -> int:
    """Return 1 for the last quarter of the batches, 0 before: neighbours in the data stay on one side."""
    return int(batches > 1 and batch >= min(math.ceil(0.75 * batches), batches - 1))


def _passes(fits: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield groups of fits whose sums fit into memory together; fits of one design stay together."""
    by_design: dict[Design, list[Candidate]] = {}
    for candidate in fits:
        by_design.setdefault(_design(candidate), []).append(candidate)
    group: list[Candidate] = []
    used = 0
    for members in by_design.values():
        size = 8 * max(unknowns(c) for c in members) ** 2 * _design(members[0]).groups
        if group and used + size > MEMORY_BYTES:
            yield group
            group, used = [], 0
        group, used = group + members, used + size
    if group:
        yield group


def _systems(fits: Sequence[Candidate]) -> dict[Design, tuple[RidgeSystem, set[str]]]:
    """Return one system per design, large enough for every kernel asked of it, and the tensors it aims at."""
    kernels: dict[Design, tuple[int, int]] = {}
    cores: dict[Design, set[str]] = {}
    channels: dict[Design, int] = {}
    for candidate in fits:
        operator, design = _operator(candidate), _design(candidate)
        height, width = kernels.get(design, (1, 1))
        kernels[design] = max(height, operator.kernel[0]), max(width, operator.kernel[1])
        cores.setdefault(design, set()).add(candidate.span.core)
        channels[design] = operator.in_channels
    return {d: (RidgeSystem(d, kernels[d], channels[d]), cores[d]) for d in kernels}


def _loss(tail: Tail, candidate: Candidate, operator: AffineConv | None) -> float:
    entry = tail.value(candidate.span.entry)
    if operator is None:
        return divergence(tail.output, tail.rerun(candidate.span.exit, entry))
    return divergence(tail.output, tail.rerun(candidate.span.core, operator.to(entry)(entry)))


def _merged(gm: fx.GraphModule, candidate: Candidate) -> AffineConv:
    nodes = {node.name: node for node in gm.graph.nodes}
    span = candidate.span
    inner = [nodes[name] for name in span.nodes[: span.nodes.index(span.core) + 1]]
    channels = _operator(candidate).in_channels
    return collapse(gm, nodes[span.entry], inner, channels)[nodes[span.core]]


def _operator(candidate: Candidate) -> AffineConv:
    assert candidate.operator is not None  # only dropped spans have none
    return candidate.operator


def _design(candidate: Candidate) -> Design:
    return design_of(candidate.span.entry, _operator(candidate))


def unknowns(candidate: Candidate) -> int:
    """Return how many weights the fit of a candidate solves for per output channel."""
    return math.prod(_operator(candidate).weight.shape[1:])
