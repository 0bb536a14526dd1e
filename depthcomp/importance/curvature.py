"""Losses of choices by the curvature of the network's loss, without a forward of the rest of the network.

One forward and a few backward passes of each judging batch give the sensitivity of the loss behind every span, where
all of its change comes together again after the next kept layers. A candidate then costs its own body, these layers
and an inner product (`depthcomp.fitting.sensitivity`). The estimate holds for small changes. True losses of a few
candidates show how it goes on for large ones, and a monotone curve through them corrects all estimates.

Candidates that cannot enter the latency-loss frontier are not fitted (`depthcomp.importance.contenders`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthcomp.fingerprint import seed_of
from depthcomp.fitting.candidates import Weights, replacement
from depthcomp.fitting.kept_slots import consumers_of, run_operator
from depthcomp.fitting.sensitivity import Sensitivity
from depthcomp.importance.calibrated import TrueLoss, judging_batches
from depthcomp.importance.candidate_scorer import CandidateScorer, FittedCandidates, JudgingBatch, Ways, least, part_of
from depthcomp.importance.contenders import Contenders
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.estimate_check import EstimateCheck, check_estimates, correction
from depthcomp.importance.halving import halve
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Candidate
from fx_passes import CapturedNetwork, SpanChoice
from fx_passes.affine import AffineConv
from latency_tables.fleet.work import Shard

__all__ = ["CurvatureJudges", "CurvatureScores", "curvature", "score_part"]

CHECKED = 36  # choices whose true loss is computed, too
STAGE_BATCHES = 2  # judging batches of a stage, of one fold: the weights of a candidate are then solved for few folds
STAGES = 6  # all candidates see the first stage, fewer see each next
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CurvatureScores:
    """Losses of candidates by curvature.

    Attributes:
        losses: the loss of each choice that can enter the frontier.
        check: how well the estimates agree with true losses; None where none could be compared.
        unestimated: the choices whose change no gradient reaches; their losses are true ones.
    """

    losses: Mapping[SpanChoice, float]
    check: EstimateCheck | None
    unestimated: tuple[SpanChoice, ...]


def curvature(context: ScoringContext, journal: ScoreJournal, draws: int) -> CurvatureScores:
    """Return the losses of the candidates that can enter the frontier.

    Args:
        context: the context of the scoring. Each judging batch is scored with weights that have not seen its fold.
        journal: the scores so far; new scores are added.
        draws: number of random probes of the output for each image.
    """
    return _Scoring(context, journal, draws).of_all()


def score_part(context: ScoringContext, journal: ScoreJournal, draws: int, part: Shard) -> int:
    """Score a part of the candidates into a journal, and return the number of entries.

    Each score has the bits that `curvature` would give it. All candidates are fitted and see all stages, as the scores
    of other parts would have to tell which can be left out. The arguments are as for `curvature`.
    """
    return _Scoring(context, journal, draws).of_part(part)


class CurvatureJudges:
    """Judges by curvature for the candidates of one network.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates.
        draws: number of random probes of the output for each image.
        seed: seed of the probes.
    """

    def __init__(self, network: CapturedNetwork, candidates: Sequence[Candidate], draws: int, seed: int) -> None:
        self._network, self._draws, self._seed = network, draws, seed
        exits = dict.fromkeys(candidate.choice.exit for candidate in candidates)
        self._joins = {exit_: _join(network, exit_) for exit_ in exits}

    def on(self, batch: JudgingBatch) -> _CurvatureJudge:
        """Return the judge of a batch."""
        sensitivity = Sensitivity(
            self._network.gm, batch.images, set(self._joins.values()), draws=self._draws,
            generator=torch.Generator().manual_seed(seed_of(self._seed, batch.name)), labels=batch.labels,
        )  # fmt: skip
        return _CurvatureJudge(sensitivity, self._joins)

    def within(self, batches: Sequence[JudgingBatch], mib: float) -> list[JudgingBatch]:
        """Return batches in parts whose tensors and gradients stay within a memory limit, at least an image each."""
        largest = max(1, int(mib * _MIB / self._image_bytes()))
        return [part for batch in batches for part in _parts(batch, largest)]

    def _image_bytes(self) -> int:
        """Return the bytes of all tensors of one image, those saved for backward passes, and its gradients."""
        elements = {name: _elements(node.meta) for name, node in self._network.nodes.items()}
        wanted = sum(elements[name] for name in set(self._joins.values()))
        return max(4 * (2 * sum(elements.values()) + (self._draws + 1) * wanted), 1)


@dataclass(frozen=True, slots=True)
class _CurvatureJudge:
    """Judge that estimates the rise of the loss from a change, once it has passed the first kept layers.

    Attributes:
        sensitivity: the gradients on one batch.
        joins: where all of a change comes together again behind those layers, by the candidate's exit.
    """

    sensitivity: Sensitivity
    joins: Mapping[str, str]

    def loss(self, candidate: Candidate, weights: Weights, consumers: Mapping[str, AffineConv]) -> float:
        """Return the loss of a candidate; NaN where no gradient reaches."""
        tail, join = self.sensitivity.tail, self.joins[candidate.choice.exit]
        refitted = {name: functools.partial(run_operator, operator) for name, operator in consumers.items()}
        changed = tail.rerun_at(*replacement(candidate, weights, tail), {join}, refitted)
        return self.sensitivity.rise(join, changed[join])


def _join(network: CapturedNetwork, exit_: str) -> str:
    """Return the first tensor through which all of a change passes that has gone through the next kept layers."""
    order, found, last = network.order, exit_, next(reversed(network.nodes))
    stop = max((order[slot.node] for slot in consumers_of(network, exit_)), default=0)
    while order[found] < stop and network.post_dominators.get(found, last) != last:
        found = network.post_dominators[found]
    return found


class _Scoring:
    """Estimates and true losses of a network's candidates, from one set of fits."""

    def __init__(self, context: ScoringContext, journal: ScoreJournal, draws: int) -> None:
        self._context, network, calibration = context, context.prepared.network, context.prepared.calibration
        self._contenders = Contenders(context.candidates, context.on_frontier)
        fitted = FittedCandidates(
            network, calibration,
            seed=context.seed, report=context.progress, memory=context.memory, refit_kept=context.refit_kept,
        )  # fmt: skip
        judges = CurvatureJudges(network, context.candidates, draws, context.seed)
        stages = [judges.within(stage, context.memory.mib) for stage in _stages(judging_batches(calibration))]
        judging = [part for stage in stages for part in stage]
        ends = list(itertools.accumulate(map(len, stages)))
        self._stages = [range(end - len(stage), end) for end, stage in zip(ends, stages, strict=True)]
        estimated = [replace(part, name=f"{part.name}, by curvature") for part in judging]
        self._estimates = CandidateScorer(fitted, estimated, judges.on, journal)
        self._true = CandidateScorer(fitted, judging, functools.partial(TrueLoss, network), journal)
        self._unestimated = set[SpanChoice]()
        self._entries = self._done = 0

    def of_all(self) -> CurvatureScores:
        """Return the losses of the candidates that can enter the frontier."""
        first, *later = self._stages
        found: dict[SpanChoice, list[Ways]] = {}
        means: dict[SpanChoice, float] = {}
        for some in self._contenders.rounds(means):
            scores = zip(*(self._score(some, number) for number in first), strict=True)
            found |= {candidate.choice: list(ways) for candidate, ways in zip(some, scores, strict=True)}
            means |= {candidate.choice: least(found[candidate.choice]) for candidate in some}
        scored = [candidate for candidate in self._context.candidates if candidate.choice in found]
        halve(found, scored, self._context.savings_ms, later, self._score)
        checked = self._checked(scored)
        true = self._true_losses(checked)
        pairs = [means[choice] for choice in true], [*true.values()]
        corrected = correction(*pairs)
        losses = {
            choice: max(least(ways), 0.0) if choice in self._unestimated else corrected(max(least(ways), 0.0))
            for choice, ways in found.items()
        }
        unestimated = tuple(choice for choice in found if choice in self._unestimated)
        return CurvatureScores(losses, check_estimates(*pairs), unestimated)

    def of_part(self, part: Shard) -> int:
        """Score a part of the candidates into the journal, and return the number of their entries."""
        some = part_of(self._context.candidates, part)
        for number in itertools.chain.from_iterable(self._stages):
            self._score(some, number)
        self._true_losses(self._checked(some))
        return self._entries

    def _score(self, candidates: Sequence[Candidate], number: int) -> list[Ways]:
        """Return the losses of candidates on a judging batch: estimates, and true losses where no gradient reaches."""
        found = self._losses(self._estimates, candidates, number, "estimating losses")
        blind = [c for c, ways in zip(candidates, found, strict=True) if any(map(math.isnan, ways))]
        self._unestimated.update(candidate.choice for candidate in blind)
        true = dict(zip((c.choice for c in blind), self._losses(self._true, blind, number, "checking"), strict=True))
        return [true.get(candidate.choice, ways) for candidate, ways in zip(candidates, found, strict=True)]

    def _checked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates to check: evenly spread over those of the network that are always scored."""
        always = next(self._contenders.rounds({}))
        spread = {candidate.choice for candidate in always[:: max(1, -(-len(always) // CHECKED))]}
        return [c for c in candidates if c.choice in spread and c.choice not in self._unestimated]

    def _true_losses(self, candidates: Sequence[Candidate]) -> dict[SpanChoice, float]:
        """Return the mean true losses of candidates on the first stage."""
        scores = zip(*(self._losses(self._true, candidates, n, "checking") for n in self._stages[0]), strict=True)
        return {candidate.choice: max(least(ways), 0.0) for candidate, ways in zip(candidates, scores, strict=True)}

    def _losses(self, scorer: CandidateScorer, candidates: Sequence[Candidate], number: int, what: str) -> list[Ways]:
        """Return the losses of candidates on a judging batch by a scorer, and report each."""
        found = []
        for ways in scorer.losses(candidates, number):
            found.append(ways)
            self._entries += len(ways)
            self._context.progress(f"{what}, batch {number + 1} of {scorer.batches}", len(found), len(candidates))
        return found


def _stages(batches: Sequence[JudgingBatch]) -> list[list[JudgingBatch]]:
    """Return the judging batches of each stage: a few of one fold, the folds in turns."""
    by_fold: dict[int, list[JudgingBatch]] = {}
    for batch in batches:
        by_fold.setdefault(batch.fold, []).append(batch)
    starts = range(0, len(batches), STAGE_BATCHES)
    stages = [several[start : start + STAGE_BATCHES] for start in starts for several in by_fold.values()]
    return [stage for stage in stages if stage][:STAGES]


def _parts(batch: JudgingBatch, largest: int) -> Iterator[JudgingBatch]:
    """Yield a batch in parts of at most `largest` images, with names of their own."""
    count = -(-len(batch.images) // largest)
    labels: Sequence[Tensor | None] = (
        [None] * count if batch.labels is None else torch.tensor_split(batch.labels, count)
    )
    for number, (images, classes) in enumerate(zip(torch.tensor_split(batch.images, count), labels, strict=True)):
        yield JudgingBatch(f"part {number + 1} of {count} of {batch.name}, by curvature", batch.fold, images, classes)


def _elements(meta: Mapping[str, object]) -> int:
    """Return the number of elements of a node's tensor for one image; 0 where it is no tensor."""
    shape = getattr(meta.get("tensor_meta"), "shape", ())
    return math.prod(shape[1:]) if shape else 0
