"""Losses of choices by the curvature of the network's loss, without a forward of the rest of the network.

One forward and a few backward passes of each judging batch give the sensitivity of the loss behind every span, where
all of its change comes together again after the next kept layers. A candidate then costs its own body, these layers
and an inner product (`depthcomp.fitting.sensitivity`). The estimate holds for small changes. True losses of a few
candidates show how it goes on for large ones, and a monotone curve through them corrects all estimates.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fingerprint import seed_of
from depthcomp.fitting.candidates import Weights, replacement
from depthcomp.fitting.kept_slots import consumers_of, run_operator
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.sensitivity import Sensitivity
from depthcomp.importance.calibrated import TrueLoss, judging_batches
from depthcomp.importance.candidate_scorer import CandidateScorer, FittedCandidates, JudgingBatch, least, part_of
from depthcomp.importance.estimate_check import EstimateCheck, check_estimates, correction
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, SpanChoice
from fx_passes.affine import AffineConv
from latency_tables.fleet.work import Shard

__all__ = ["CurvatureJudges", "CurvatureScores", "curvature", "score_part"]

CHECKED = 36  # choices whose true loss is computed, too
ESTIMATED_BATCHES = 9  # judging batches for estimates
CHECKED_BATCHES = 6  # judging batches for true losses
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CurvatureScores:
    """Losses of candidates by curvature.

    Attributes:
        losses: the loss of each choice.
        check: how well the estimates agree with true losses; None where none could be compared.
        unestimated: the choices whose change no gradient reaches; their losses are true ones.
    """

    losses: Mapping[SpanChoice, float]
    check: EstimateCheck | None
    unestimated: tuple[SpanChoice, ...]


def curvature(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    *,
    draws: int,
    refit_kept: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    journal: ScoreJournal | None = None,
    memory: FitMemory | None = None,
) -> CurvatureScores:
    """Return the loss of each candidate.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates to score; `memory` has room for at least one pixel of each fit's kernel.
        calibration: the images. Each judging batch is scored with weights that have not seen its fold.
        draws: number of random probes of the output for each image.
        refit_kept: whether kept layers that read a change are refitted; False where the images are random.
        seed: seed of the sampled pixels and of the probes.
        progress: called as (what, done, total).
        journal: the scores so far; new scores are added.
        memory: the memory that fits and gradients may use; None for the default.
    """
    scores = _Scores(
        network, candidates, candidates, calibration, draws, seed, progress, journal, memory, refit_kept=refit_kept
    )
    return scores.of_all()


def score_part(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    journal: ScoreJournal,
    part: Shard,
    *,
    draws: int,
    refit_kept: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    memory: FitMemory | None = None,
) -> int:
    """Score a part of the candidates into a journal, and return the number of entries.

    Candidates whose fits share sums stay in one part, so each score has the bits that `curvature` would give it. The
    arguments are as for `curvature`.
    """
    some = part_of(candidates, part)
    scores = _Scores(
        network, candidates, some, calibration, draws, seed, progress, journal, memory, refit_kept=refit_kept
    )
    return scores.of_part()


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


class _Scores:
    """Estimates and true losses of some of a network's candidates, from one set of fits."""

    def __init__(
        self,
        network: CapturedNetwork,
        candidates: Sequence[Candidate],
        some: Sequence[Candidate],
        calibration: CalibrationSet,
        draws: int,
        seed: int,
        progress: Progress | None,
        journal: ScoreJournal | None,
        memory: FitMemory | None,
        *,
        refit_kept: bool,
    ) -> None:
        memory, self._report = memory or FitMemory(calibration.count), progress or silent
        known = ScoreJournal() if journal is None else journal
        fitted = FittedCandidates(
            network, some, calibration,
            seed=seed, report=self._report, memory=memory, refit_kept=refit_kept, folds_together=True,
        )  # fmt: skip
        batches, judges = judging_batches(calibration), CurvatureJudges(network, candidates, draws, seed)
        parts, true_loss = judges.within(batches[:ESTIMATED_BATCHES], memory.mib), functools.partial(TrueLoss, network)
        self._estimates = CandidateScorer(fitted, parts, judges.on, known)
        self._true = CandidateScorer(fitted, batches[:CHECKED_BATCHES], true_loss, known)
        self._some, self._checked = some, _spread(candidates)

    def of_all(self) -> CurvatureScores:
        """Return the losses of the candidates."""
        estimates = self._mean(self._estimates, self._some, "estimating")
        unknown = [c for c in self._some if math.isnan(estimates[c.choice])]
        checked = [c for c in self._some if c.choice in self._checked and not math.isnan(estimates[c.choice])]
        true = self._mean(self._true, [*checked, *unknown], "checking")
        pairs = [estimates[c.choice] for c in checked], [true[c.choice] for c in checked]
        corrected = correction(*pairs)
        losses = {
            choice: true[choice] if math.isnan(estimate) else corrected(estimate)
            for choice, estimate in estimates.items()
        }
        return CurvatureScores(losses, check_estimates(*pairs), tuple(c.choice for c in unknown))

    def of_part(self) -> int:
        """Score the candidates into the journal, and return the number of their entries."""
        estimates = self._mean(self._estimates, self._some, "estimating")
        wanted = [c for c in self._some if c.choice in self._checked or math.isnan(estimates[c.choice])]
        self._mean(self._true, wanted, "checking")
        return self._estimates.entries * len(self._some) + self._true.entries * len(wanted)

    def _mean(self, scorer: CandidateScorer, candidates: Sequence[Candidate], what: str) -> dict[SpanChoice, float]:
        """Return the mean losses of candidates over all batches of a scorer, not below 0."""
        found: dict[SpanChoice, list[tuple[float, ...]]] = {candidate.choice: [] for candidate in candidates}
        done, total = itertools.count(1), scorer.batches * len(candidates)
        for number in range(scorer.batches) if candidates else ():
            for candidate, ways in zip(candidates, scorer.losses(candidates, number), strict=True):
                found[candidate.choice].append(ways)
                self._report(what, next(done), total)
        return {choice: max(least(ways), 0.0) for choice, ways in found.items()}  # max keeps a NaN that comes first


def _spread(candidates: Sequence[Candidate]) -> set[SpanChoice]:
    """Return the choices to check, evenly spread over the network."""
    step = max(1, -(-len(candidates) // CHECKED))
    return {candidate.choice for candidate in candidates[::step]}


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
