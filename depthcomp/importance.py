"""What a choice costs in loss: the rise of the divergence from the original network's output.

`calibrated` needs no labels and no training. For every candidate the fitted convolution (or the exact merge, or
identity) takes its span's place, the rest of the network stays as it was, and the outputs on held-out images
are compared. Importance is lower-is-better; the sum over a plan's choices stands for the plan's loss.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from depthcomp.calibration import CalibrationSet
from depthcomp.errors import DataError
from depthcomp.execution import Tail, record
from depthcomp.fit import Design, RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.pricing import Candidate
from depthcomp.progress import Progress, silent
from depthcomp.score_journal import ScoreJournal
from fx_passes import Plan, SpanChoice, linearize, merge
from fx_passes.affine import AffineConv
from fx_passes.collapse import collapse
from fx_passes.operators import Role, role

__all__ = [
    "calibrated",
    "divergence",
    "divergence_of",
    "fit_candidates",
    "is_scores",
    "require_finite",
    "rise_of_loss",
    "samples_per_batch",
    "unknowns",
    "whole_states",
]

LARGEST_SYSTEM = 3000  # unknowns per output channel; the Gram matrix then has 72 MB and is solved in seconds
LEAST_SCORED = 64  # candidates that see all judging batches
MOST_JUDGING = 18  # batches that candidates are scored on; whole plans are judged on all
MEMORY_MIB = 1536  # for the Gram matrices of one pass over the data
SAMPLES_PER_UNKNOWN = 5  # pixels per regression
LEAST_SAMPLES = 2048


def divergence(original: Any, changed: Any) -> float:
    """Return how far `changed` is from `original`, the outputs of two networks on the same images.

    For one tensor of class scores (n, classes) this is the mean KL(softmax original || softmax changed) in
    nats; for any other output, the squared error relative to the original's variance, averaged over tensors.
    """
    return float(divergence_of(original, changed))


def divergence_of(original: Any, changed: Any) -> Tensor:
    """Return the divergence as a tensor () of float64 that can be differentiated."""
    pairs = [
        (a, b)
        for a, b in zip(tree_leaves(original), tree_leaves(changed), strict=True)
        if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if len(pairs) == 1 and is_scores(pairs[0][0]):
        scores, other = (F.log_softmax(t.double(), dim=1) for t in pairs[0])
        return F.kl_div(other, scores, log_target=True, reduction="batchmean")
    errors = [(a - b).square().mean() / _power(a) for a, b in pairs]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def is_scores(output: Any) -> bool:
    """Say whether an output holds a score for each class of each image, (n, classes)."""
    return isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1


def rise_of_loss(original: Any, changed: Any, labels: Tensor | None) -> float:
    """Return by how much the loss rises from one network's outputs to another's on the same images.

    Without labels this is the divergence. With labels (n,) of class scores it is the mean of the divergence and the
    rise of the cross-entropy: both estimate the same where the original is right about its own certainty; the
    divergence has less noise on few images, and the labels know where the original errs.
    """
    gap = divergence(original, changed)
    if labels is None:
        return gap
    before, after = (float(F.cross_entropy(s.double(), labels.to(s.device))) for s in (original, changed))
    return (gap + after - before) / 2


def _power(values: Tensor) -> Tensor:
    """Return the variance of values, or their mean square where they do not vary."""
    variance, square = values.var(correction=0), values.square().mean()
    return torch.where(variance > 1e-6 * square, variance, square).clamp_min(1e-12)


def calibrated(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    savings_ms: Mapping[SpanChoice, float],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    journal: ScoreJournal | None = None,
    memory_mib: int = MEMORY_MIB,
) -> dict[SpanChoice, float]:
    """Return the loss of each candidate; those whose least-squares system is too large are left out.

    Args:
        gm: the captured graph, in evaluation mode; it is not changed.
        candidates: what to score.
        calibration: images. Losses are taken on each judging batch with weights that have not seen its fold, by
            successive halving: all candidates see the first batch, and of each batch's candidates the half with
            the lower loss per saved ms sees the next.
        savings_ms: what each choice saves, in ms.
        seed: for the sampled pixels.
        progress: called as (what, done, total).
        journal: what was scored before, and where each new score goes; fits are not kept, so a run that resumes
            solves them again.
        memory_mib: most memory for sums.
    """
    report, known = progress or silent, ScoreJournal() if journal is None else journal
    operators = functools.cache(
        lambda: fit_candidates(gm, candidates, calibration, seed=seed, progress=report, memory_mib=memory_mib)
    )
    merged = functools.cache(lambda choice: merge(linearize(gm, Plan((choice,))), Plan((choice,))))
    scored = [c for c in candidates if c.choice.kind != "fit" or unknowns(c) <= LARGEST_SYSTEM]
    losses: dict[SpanChoice, list[float]] = {candidate.choice: [] for candidate in scored}
    judging = list(itertools.islice(calibration.judging(), MOST_JUDGING))
    labels = list(calibration.judging_labels())
    sizes = _survivors(len(scored), len(judging))
    done = itertools.count(1)
    for number, ((fold, batch), size) in enumerate(zip(judging, sizes, strict=True)):
        scored = scored[:size]
        tail = functools.cache(functools.partial(_tail, gm, batch))
        for candidate in scored:
            entry = f"{candidate.choice} on batch {number}"
            if entry not in known:
                operator, start = operators()[candidate.choice][fold], time.perf_counter()
                if _merges_otherwise(candidate.choice):
                    loss = rise_of_loss(tail().output, _outputs(merged(candidate.choice), batch), labels[number])
                else:
                    loss = _loss(tail(), candidate, operator, labels[number])
                known.add(entry, loss, time.perf_counter() - start)
            losses[candidate.choice].append(known[entry])
            report("scoring", next(done), sum(sizes))
        scored.sort(key=lambda candidate: _mean(losses[candidate.choice]) / savings_ms[candidate.choice])
    return {choice: max(_mean(found), 0.0) for choice, found in losses.items()}


def fit_candidates(
    gm: fx.GraphModule,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    memory_mib: int = MEMORY_MIB,
) -> dict[SpanChoice, Mapping[int, AffineConv | None]]:
    """Return the operators of each candidate, by the judging fold that they have not seen, in the images' precision.

    The operator of a dropped span is None. Fits whose system has more than 3,000 unknowns are left out. Memory for
    the sums is bounded: where it is not enough, the images pass through the network several times.
    """
    report = progress or silent
    fits = [c for c in candidates if c.choice.kind == "fit" and unknowns(c) <= LARGEST_SYSTEM]
    operators: dict[SpanChoice, Mapping[int, AffineConv | None]] = {}
    for candidate in candidates:
        if candidate.choice.kind != "fit":
            operator = _merged(gm, candidate) if candidate.choice.kind == "merge" else None
            operators[candidate.choice] = dict.fromkeys(range(calibration.count), operator)
    groups = list(_passes(fits, calibration.count, memory_mib * 2**20))
    for number, group in enumerate(groups):
        systems = _systems(group)
        for done, (batch, fold) in enumerate(zip(calibration.batches, calibration.folds, strict=True)):
            _accumulate(gm, systems, batch, calibration.least_fitted, seed + done, fold)
            report(f"fitting, pass {number + 1} of {len(groups)}", done + 1, len(calibration.batches))
        together = _same_shape(group)
        for done, members in enumerate(together):
            operators.update(_solve(gm, systems[_design(members[0])][0], members, calibration))
            report(f"solving, pass {number + 1} of {len(groups)}", done + 1, len(together))
    return operators


def _survivors(candidates: int, batches: int) -> list[int]:
    """Return how many candidates see each batch."""
    sizes = [candidates]
    while len(sizes) < batches:
        sizes.append(min(sizes[-1], max(LEAST_SCORED, (sizes[-1] + 1) // 2)))
    return sizes


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _accumulate(
    gm: fx.GraphModule,
    systems: Mapping[Design, tuple[RidgeSystem, set[str]]],
    batch: Tensor,
    batches: int,
    seed: int,
    fold: int,
) -> None:
    """Add one of `batches` that make up a fit to the sums of all systems, none of which depends on the others."""
    names = {name for design, (_, cores) in systems.items() for name in (design.entry, *cores)}
    tensors = record(gm, batch, names)
    for design, (system, cores) in systems.items():
        generator = torch.Generator().manual_seed(seed)
        positions = sample_positions(tensors[min(cores)], samples_per_batch(system.unknowns, batches), generator)
        targets = {name: positions.pixels(tensors[name]) for name in sorted(cores)}
        system.accumulate(tensors[design.entry], targets, positions, fold=fold)


def _same_shape(fits: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the fits in groups of one design and weight shape, which share one factorisation."""
    groups: dict[tuple[Design, tuple[int, ...]], list[Candidate]] = {}
    for candidate in fits:
        groups.setdefault((_design(candidate), tuple(_operator(candidate).weight.shape)), []).append(candidate)
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


def whole_states(gm: fx.GraphModule, names: Iterable[str]) -> set[str]:
    """Return those of the tensors that are no summand: a summand's unexplained part is better left out."""
    nodes = {node.name: node for node in gm.graph.nodes}
    return {name for name in names if [role(gm, user) for user in nodes[name].users] != [Role.ADD]}


def samples_per_batch(unknowns: int, batches: int) -> int:
    """Return how many pixels to take from each batch for a system of so many unknowns."""
    return (SAMPLES_PER_UNKNOWN * unknowns + LEAST_SAMPLES) // batches + 1


def _passes(fits: Sequence[Candidate], folds: int, memory_bytes: int) -> Iterator[list[Candidate]]:
    """Yield groups of fits whose sums fit into memory together; fits of one design stay together."""
    by_design: dict[Design, list[Candidate]] = {}
    for candidate in fits:
        by_design.setdefault(_design(candidate), []).append(candidate)
    group: list[Candidate] = []
    used = 0
    for members in by_design.values():
        size = 8 * folds * max(unknowns(c) for c in members) ** 2 * _design(members[0]).groups
        if group and used + size > memory_bytes:
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


def _merges_otherwise(choice: SpanChoice) -> bool:
    """Say whether a choice merges with convolutions pruned or another end, which its span's collapse does not tell."""
    return choice.kind == "merge" and (bool(choice.pruned) or choice.end != "original")


def _outputs(network: fx.GraphModule, batch: Tensor) -> Any:
    with torch.no_grad():
        return network(batch)


def _tail(gm: fx.GraphModule, batch: Tensor) -> Tail:
    tail = Tail(gm, batch)
    require_finite(tail.output)
    return tail


def require_finite(output: Any) -> None:
    """Refuse an original network whose own output is not finite: nothing can be compared with it.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not all(bool(part.isfinite().all()) for part in tree_leaves(output) if isinstance(part, Tensor)):
        raise DataError(
            "the network's own output on the calibration images is NaN or infinite, so no choice can be compared with "
            "it; check the network's weights, and that the images are normalised as for training"
        )


def _loss(tail: Tail, candidate: Candidate, operator: AffineConv | None, labels: Tensor | None) -> float:
    entry, name = tail.value(candidate.span.entry), candidate.span.exit
    if operator is not None:
        entry, name = operator.to(entry)(entry), candidate.span.core
    return rise_of_loss(tail.output, tail.rerun(name, entry), labels)


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
