"""What a choice costs in loss: the rise of the divergence from the original network's output.

`calibrated` needs no labels and no training. For every candidate the fitted convolution (or the exact merge, or
identity) takes its span's place, the kept convolutions that read what it changes are refitted where that helps, the
rest of the network stays as it was, and the outputs on held-out images are compared. Importance is lower-is-better; the
sum over a plan's choices stands for the plan's loss.
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

LEAST_SCORED = 64  # candidates that see all judging batches
CONSUMER_BATCHES = 12  # that consumers of a change are refitted on for a score
MOST_JUDGING = 18  # batches that candidates are scored on; whole plans are judged on all

Ways = tuple[float, ...]
"""Losses of a choice as it is and, where its consumers may be refitted, with these refitted."""


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
        candidates: what to score; `memory` has room for a pixel of each fit's kernel at least.
        calibration: images. Losses are taken on each judging batch with weights that have not seen its fold, by
            successive halving: all candidates see the first batch, and of each batch's candidates the half with
            the lower loss per saved ms sees the next.
        savings_ms: what each choice saves, in ms.
        refit_kept: whether kept convolutions that read a change are refitted; not to be done on images that are none.
        seed: for the sampled pixels.
        progress: called as (what, done, total).
        journal: what was scored before, and where each new score goes; fits are not kept, so a run that resumes
            solves them again, unless all that it needs was scored.
        memory: what the fits may take; None for the default.
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
    """Put the scores of a part of the candidates on all judging batches into a journal; return its entries' number.

    Candidates that read one tensor alike share the sums of their fits, so they stay together, and each score has the
    bits that `calibrated` would give it. Which of them halving would pass over depends on the other parts, so none is.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: all of them.
        calibration: images.
        journal: that of all the candidates.
        part: which part.
        refit_kept: as for `calibrated`.
        seed: for the sampled pixels.
        progress: called as (what, done, total).
        memory: what the fits may take; None for the default.
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
    """Return the candidates of one part; the groups of most work are dealt out first."""
    ordered = sorted(_sharing(candidates), key=lambda group: max(map(_work, group)), reverse=True)
    return [candidate for group in ordered[part.index :: part.count] for candidate in group]


def _sharing(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return candidates in groups, no two of which share sums or read one tensor."""
    flow: nx.Graph[object] = nx.Graph()
    for index, candidate in enumerate(candidates):
        shared: list[object] = [design_of_slot(slot) for slot in candidate.slots] or [candidate.choice.entry]
        flow.add_edges_from((index, key) for key in shared)
    groups = (sorted(key for key in group if isinstance(key, int)) for group in nx.connected_components(flow))
    return [[candidates[index] for index in group] for group in sorted(groups)]


def _work(candidate: Candidate) -> int:
    """Return what the fits of a candidate take, in some unit."""
    return sum(math.prod(slot.operator.weight.shape[1:]) ** 3 for slot in candidate.slots)


class _Scorer:
    """Scores candidates on judging batches, or takes the scores from a journal."""

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
        self._refits = refit_kept and bool(calibration.judges)  # a fold has to judge how far a refit goes
        self._judging = list(itertools.islice(calibration.judging(), MOST_JUDGING))
        self._labels = list(calibration.judging_labels())
        self._consumers: dict[tuple[SpanChoice, int], Mapping[str, AffineConv]] = {}
        self._tail: tuple[int, Tail] | None = None

    @property
    def batches(self) -> int:
        """How many batches judge."""
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
        """Return the names in the journal of a candidate's losses."""
        bare = f"{candidate.choice} on batch {number}"
        return [bare, f"{candidate.choice} with refitted readers on batch {number}"] if self._refits else [bare]

    def _scored(self, candidate: Candidate, number: int) -> Ways:
        fold, _ = self._judging[number]
        weights, tail, labels = self._weights[candidate.choice][fold], self._at(number), self._labels[number]
        bare = _loss(tail, candidate, weights, {}, labels)
        consumers = self._consumers.get((candidate.choice, fold))
        refitted = _loss(tail, candidate, weights, consumers, labels) if consumers else bare
        return (bare, refitted) if self._refits else (bare,)

    def _refit_consumers(self, candidates: Sequence[Candidate], fold: int) -> None:
        """Refit the consumers of candidates' changes without a fold, unless that was done before."""
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
        """The weights of all bodies, which are only solved for where a score is missing."""
        return fit_candidates(
            self._network, self._candidates, self._calibration,
            seed=self._seed, progress=self._report, memory=self._memory,
        )  # fmt: skip

    def _at(self, number: int) -> Tail:
        """Return the original's forward on a judging batch; that of the last one is kept."""
        if self._tail is None or self._tail[0] != number:
            self._tail = None  # two would take twice the memory
            self._tail = number, _tail(self._network.gm, self._judging[number][1])
        return self._tail[1]


def _survivors(candidates: int, batches: int) -> list[int]:
    """Return how many candidates see each batch."""
    sizes = [candidates]
    while len(sizes) < batches:
        sizes.append(min(sizes[-1], max(LEAST_SCORED, (sizes[-1] + 1) // 2)))
    return sizes


def _price(losses: Sequence[Ways], saving_ms: float) -> float:
    """Return the loss for each ms that is saved; what makes the loss NaN is dearest."""
    loss = _least(losses)
    return math.inf if math.isnan(loss) else loss / saving_ms


def _least(losses: Sequence[Ways]) -> float:
    """Return the mean loss over batches, with or without refits, whichever is less; NaN is more than any number."""
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
    """Return the loss of the network where a choice and the refitted consumers of its change stand."""
    refitted = {name: functools.partial(run_operator, operator) for name, operator in consumers.items()}
    return rise_of_loss(tail.output, tail.rerun(*replacement(candidate, weights, tail), refitted), labels)
