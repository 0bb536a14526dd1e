"""Losses of choices by closed-form fits, without labels or training.

The loss of a candidate is the divergence of the network's output on held-out images when the candidate's body replaces
its span. The kept layers that read the change are refitted where that helps; the rest of the network stays. Lower is
better. The sum over a plan's choices estimates the plan's loss.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import networkx as nx
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import Weights, design_of_slot, fit_candidates, replacement
from depthcomp.fitting.consumers import refit_consumers
from depthcomp.fitting.divergence import require_finite, rise_of_loss
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.kept_slots import run_operator
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, SpanChoice
from fx_passes.affine import AffineConv
from latency_tables.fleet.work import Shard

__all__ = [
    "calibrated",
    "score_part",
]

LEAST_SCORED = 64  # this many candidates see all judging batches
CONSUMER_BATCHES = 12  # consumers of a change are refitted on this many batches for a score
MOST_JUDGING = 18  # candidates are scored on at most this many batches; whole plans are judged on all

Ways = tuple[float, ...]
"""Losses of a choice: without refitted consumers and, where refits are allowed, with them."""


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
) -> dict[SpanChoice, float]:
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
    scorer = _Scorer(network, candidates, calibration, known, seed, report, memory, refit_kept=refit_kept)
    losses: dict[SpanChoice, list[Ways]] = {candidate.choice: [] for candidate in candidates}
    sizes, scored = _survivors(len(candidates), scorer.batches), list(candidates)
    done = itertools.count(1)
    for number, size in enumerate(sizes):
        scored = scored[:size]
        for candidate, loss in zip(scored, scorer.losses(scored, number), strict=True):
            losses[candidate.choice].append(loss)
            report("scoring", next(done), sum(sizes))
        scored.sort(key=lambda candidate: _price(losses[candidate.choice], savings_ms[candidate.choice]))
    return {choice: max(_least(found), 0.0) for choice, found in losses.items()}


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
    report, some = progress or silent, _part(candidates, part)
    scorer = _Scorer(network, some, calibration, journal, seed, report, memory, refit_kept=refit_kept)
    total, done, entries = scorer.batches * len(some), itertools.count(1), 0
    for number in range(scorer.batches):
        for ways in scorer.losses(some, number):
            report("scoring", next(done), total)
            entries += len(ways)
    return entries


def _part(candidates: Sequence[Candidate], part: Shard) -> list[Candidate]:
    """Return the candidates of a part; groups are dealt out by falling work."""
    ordered = sorted(_sharing(candidates), key=lambda group: max(map(_work, group)), reverse=True)
    return [candidate for group in ordered[part.index :: part.count] for candidate in group]


def _sharing(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return candidates in groups; candidates that share sums, or change one tensor without a fit, stay together."""
    flow: nx.Graph[object] = nx.Graph()
    for index, candidate in enumerate(candidates):
        shared: list[object] = [design_of_slot(slot) for slot in candidate.slots] or [candidate.choice.entry]
        flow.add_edges_from((index, key) for key in shared)
    groups = (sorted(key for key in group if isinstance(key, int)) for group in nx.connected_components(flow))
    return [[candidates[index] for index in group] for group in sorted(groups)]


def _work(candidate: Candidate) -> int:
    """Return the relative work of a candidate's fits."""
    return sum(math.prod(slot.operator.weight.shape[1:]) ** 3 for slot in candidate.slots)


class _Scorer:
    """Scores candidates on judging batches, except where the journal has the scores."""

    def __init__(
        self,
        network: CapturedNetwork,
        candidates: Sequence[Candidate],
        calibration: CalibrationSet,
        journal: ScoreJournal,
        seed: int,
        report: Progress,
        memory: FitMemory | None,
        *,
        refit_kept: bool,
    ) -> None:
        self._network, self._candidates, self._calibration = network, candidates, calibration
        self._journal, self._seed, self._report = journal, seed, report
        self._memory = memory or FitMemory(calibration.count)
        self._refits = refit_kept and bool(calibration.judges)  # a fold must choose the strength of a refit
        self._judging = list(itertools.islice(calibration.judging(), MOST_JUDGING))
        self._labels = list(calibration.judging_labels())
        self._consumers: dict[tuple[SpanChoice, int], Mapping[str, AffineConv]] = {}
        self._tail: tuple[int, Tail] | None = None

    @property
    def batches(self) -> int:
        """Number of judging batches."""
        return len(self._judging)

    def losses(self, candidates: Sequence[Candidate], number: int) -> Iterator[Ways]:
        """Yield the losses of candidates on judging batch `number`."""
        missing = [c for c in candidates if any(entry not in self._journal for entry in self._entries(c, number))]
        start = time.perf_counter()
        if missing and self._refits:
            self._refit_consumers(missing, self._judging[number][0])
        shared = (time.perf_counter() - start) / max(len(missing), 1)
        for candidate in candidates:
            entries = self._entries(candidate, number)
            if any(entry not in self._journal for entry in entries):
                start = time.perf_counter()
                found = self._scored(candidate, number)
                seconds = (shared + time.perf_counter() - start) / len(entries)
                for entry, loss in zip(entries, found, strict=True):
                    if entry not in self._journal:
                        self._journal.add(entry, loss, seconds)
            yield tuple(self._journal[entry] for entry in entries)

    def _entries(self, candidate: Candidate, number: int) -> list[str]:
        """Return the journal's names for the losses of a candidate."""
        bare = f"{candidate.choice} on batch {number}"
        # journals on disk hold the word readers, for consumers
        return [bare, f"{candidate.choice} with refitted readers on batch {number}"] if self._refits else [bare]

    def _scored(self, candidate: Candidate, number: int) -> Ways:
        fold, _ = self._judging[number]
        weights, tail, labels = self._weights[candidate.choice][fold], self._at(number), self._labels[number]
        bare = _loss(tail, candidate, weights, {}, labels)
        consumers = self._consumers.get((candidate.choice, fold))
        refitted = _loss(tail, candidate, weights, consumers, labels) if consumers else bare
        return (bare, refitted) if self._refits else (bare,)

    def _refit_consumers(self, candidates: Sequence[Candidate], fold: int) -> None:
        """Refit the consumers of candidates' changes without a fold, where that is not done yet."""
        self._tail = None  # two would take twice the memory
        missing = [c for c in candidates if (c.choice, fold) not in self._consumers]
        found = refit_consumers(
            self._network, missing, {c.choice: self._weights[c.choice][fold] for c in missing},
            self._calibration.thinned(CONSUMER_BATCHES), fold,
            seed=self._seed, memory=self._memory, progress=self._report,
        )  # fmt: skip
        self._consumers.update({(choice, fold): consumers for choice, consumers in found.items()})

    @functools.cached_property
    def _weights(self) -> Mapping[SpanChoice, Mapping[int, Weights]]:
        """Weights of all bodies, solved on first use: a run with all scores needs none."""
        return fit_candidates(
            self._network, self._candidates, self._calibration,
            seed=self._seed, progress=self._report, memory=self._memory,
        )  # fmt: skip

    def _at(self, number: int) -> Tail:
        """Return the original's recorded forward on a judging batch; only the last one stays in memory."""
        if self._tail is None or self._tail[0] != number:
            self._tail = None  # two would take twice the memory
            self._tail = number, _tail(self._network.gm, self._judging[number][1])
        return self._tail[1]


def _survivors(candidates: int, batches: int) -> list[int]:
    """Return the number of candidates that see each batch."""
    sizes = [candidates]
    while len(sizes) < batches:
        sizes.append(min(sizes[-1], max(LEAST_SCORED, (sizes[-1] + 1) // 2)))
    return sizes


def _price(losses: Sequence[Ways], saving_ms: float) -> float:
    """Return the loss per saved ms; infinity where the loss is NaN."""
    loss = _least(losses)
    return math.inf if math.isnan(loss) else loss / saving_ms


def _least(losses: Sequence[Ways]) -> float:
    """Return the lesser mean loss over batches, without or with refits; NaN counts as more than any number."""
    return min((_mean(way) for way in zip(*losses, strict=True)), key=lambda mean: (math.isnan(mean), mean))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _tail(gm: fx.GraphModule, batch: Tensor) -> Tail:
    tail = Tail(gm, batch)
    require_finite(tail.output)
    return tail


def _loss(
    tail: Tail,
    candidate: Candidate,
    weights: Weights,
    consumers: Mapping[str, AffineConv],
    labels: Tensor | None,
) -> float:
    """Return the loss of the network with a candidate's body and the refitted consumers of its change."""
    refitted = {name: functools.partial(run_operator, operator) for name, operator in consumers.items()}
    return rise_of_loss(tail.output, tail.rerun(*replacement(candidate, weights, tail), refitted), labels)
