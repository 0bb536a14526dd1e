"""Losses of choices by closed-form fits, without labels or training.

The loss of a candidate is the divergence of the network's output on held-out images when the candidate's body replaces
its span. The kept layers that read the change are refitted where that helps; the rest of the network stays. Lower is
better. The sum over a plan's choices estimates the plan's loss.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.candidate_scorer import CandidateScorer, part_of
from depthcomp.importance.fitted_candidates import FittedCandidates
from depthcomp.importance.halving import halve, survivors
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.importance.ways import Ways, least, profiting
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, SpanChoice
from latency_tables.fleet.work import Shard

__all__ = ["CalibratedScores", "calibrated", "score_part"]


@dataclass(frozen=True, slots=True)
class CalibratedScores:
    """Losses of candidates.

    Attributes:
        losses: the loss of each choice, without or with refitted consumers, whichever is less.
        profiting: the choices whose loss is less with refitted consumers.
    """

    losses: Mapping[SpanChoice, float]
    profiting: frozenset[SpanChoice]


def calibrated(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    savings_ms: Mapping[SpanChoice, float],
    *,
    refit_kept: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    journal: ScoreJournal | None = None,
    memory: FitMemory | None = None,
) -> CalibratedScores:
    """Return the loss of each candidate.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates to score; `memory` has room for at least one pixel of each fit's kernel.
        calibration: the images. Each judging batch is scored with weights that have not seen its fold. Batches halve
            the candidates: all see the first batch, and the half with less loss per saved ms sees the next.
        savings_ms: latency that each choice saves, in ms.
        refit_kept: whether kept layers that read a change are refitted; False where the images are random.
        seed: seed of the sampled pixels.
        progress: called as (what, done, total).
        journal: the scores so far; new scores are added. It holds no fits, so a resumed run solves them again where a
            score is missing.
        memory: the memory that fits may use; None for the default.
    """
    report, known = progress or silent, ScoreJournal() if journal is None else journal
    scorer = _scorer(network, calibration, known, seed, report, memory, refit_kept=refit_kept)
    later = range(1, scorer.batches)
    done, total = itertools.count(1), len(candidates) + sum(survivors(len(candidates), len(later)))

    def score(some: Sequence[Candidate], number: int) -> Iterator[Ways]:
        """Yield the losses of candidates on a batch, and report each."""
        for ways in scorer.losses(some, number):
            yield ways
            report("scoring", next(done), total)

    losses = {c.choice: [ways] for c, ways in zip(candidates, score(candidates, 0), strict=True)}
    halve(losses, candidates, savings_ms, later, score)
    return CalibratedScores({choice: max(least(found), 0.0) for choice, found in losses.items()}, profiting(losses))


def score_part(
    network: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    journal: ScoreJournal,
    part: Shard,
    *,
    refit_kept: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    memory: FitMemory | None = None,
) -> int:
    """Score a part of the candidates on all judging batches into a journal, and return the number of entries.

    Candidates whose fits share sums stay in one part, so each score has the bits that `calibrated` would give it.
    Nothing is halved here: halving depends on the scores of all parts.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates of all parts.
        calibration: the images.
        journal: the journal of all candidates.
        part: the part to score.
        refit_kept: as for `calibrated`.
        seed: seed of the sampled pixels.
        progress: called as (what, done, total).
        memory: the memory that fits may use; None for the default.
    """
    report, some = progress or silent, part_of(candidates, part)
    scorer = _scorer(network, calibration, journal, seed, report, memory, refit_kept=refit_kept)
    total, done, entries = scorer.batches * len(some), itertools.count(1), 0
    for number in range(scorer.batches):
        for ways in scorer.losses(some, number):
            report("scoring", next(done), total)
            entries += len(ways)
    return entries


def _scorer(
    network: CapturedNetwork,
    calibration: CalibrationSet,
    journal: ScoreJournal,
    seed: int,
    report: Progress,
    memory: FitMemory | None,
    *,
    refit_kept: bool,
) -> CandidateScorer:
    fitted = FittedCandidates(
        network, calibration,
        seed=seed, report=report, memory=memory or FitMemory(calibration.count), refit_kept=refit_kept,
    )  # fmt: skip
    judge = functools.partial(TrueLoss, network, judging=calibration.loss)
    return CandidateScorer(fitted, judging_batches(calibration), judge, journal)
