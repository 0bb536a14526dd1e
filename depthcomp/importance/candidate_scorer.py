"""Scores of candidates on judging batches: fitted bodies, refitted consumers, and a judge of the change.

Each judging batch is scored with weights that have not seen its fold. Finished scores are kept in a journal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import networkx as nx
from torch import Tensor

from depthcomp.data.inputs import Inputs
from depthcomp.fitting.candidates import Weights, design_of_slot
from depthcomp.fitting.consumers import restores_its_exit
from depthcomp.importance.fitted_candidates import FittedCandidates
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.ways import Ways
from depthcomp.latency.pricing import Candidate
from fx_passes import SpanChoice
from fx_passes.affine import AffineConv
from latency_tables.fleet.work import Shard

__all__ = ["CandidateScorer", "Judge", "JudgeOf", "JudgingBatch", "part_of"]


@dataclass(frozen=True, slots=True)
class JudgingBatch:
    """Images that judge.

    Attributes:
        name: name of the batch in the journal.
        fold: the fold of its images.
        images: n images, or examples of several inputs.
        labels: their classes (n,); None where there are none.
    """

    name: str
    fold: int
    images: Inputs
    labels: Tensor | None


class Judge(Protocol):
    """A judge of changes on one judging batch."""

    def loss(self, candidate: Candidate, weights: Weights, consumers: Mapping[str, AffineConv]) -> float:
        """Return the loss of a candidate whose body has these weights.

        Args:
            candidate: the candidate.
            weights: weights of its body.
            consumers: refitted kept layers behind the change, by node; others stay.
        """


JudgeOf = Callable[[JudgingBatch], Judge]
"""Function that returns the judge of a batch, which may keep all of its tensors in memory."""


class CandidateScorer:
    """Scores candidates on judging batches, except where the journal has the scores.

    Args:
        fitted: weights of candidates and of their consumers.
        judging: the batches that judge.
        judge_of: returns the judge of a batch.
        journal: the scores so far; new scores are added. It holds no fits, so a resumed run solves them again where a
            score is missing.
        refitted: the folds that judge refitted consumers, too; each takes refits of its own. None for all.
    """

    def __init__(
        self,
        fitted: FittedCandidates,
        judging: Sequence[JudgingBatch],
        judge_of: JudgeOf,
        journal: ScoreJournal,
        *,
        refitted: Set[int] | None = None,
    ) -> None:
        self._fitted, self._judging, self._judge_of, self._journal = fitted, judging, judge_of, journal
        folds = {batch.fold for batch in judging} if refitted is None else refitted
        self._refitted = folds if fitted.refits else frozenset[int]()

    @property
    def batches(self) -> int:
        """Number of judging batches."""
        return len(self._judging)

    def parts(self, candidates: Sequence[Candidate], bare: Set[SpanChoice]) -> Iterator[list[Candidate]]:
        """Yield the candidates in parts whose fits, and refits of consumers, stay in memory together."""
        return self._fitted.parts(candidates, len(self._refitted), bare)

    def fit(self, candidates: Sequence[Candidate], bare: Set[SpanChoice]) -> None:
        """Fit the candidates whose scores the journal lacks for all batches together, which saves passes."""
        numbers = range(self.batches)
        missing = [
            candidate
            for candidate in candidates
            if any(entry not in self._journal for number in numbers for entry in self._entries(candidate, number, bare))
        ]
        self._fitted.fit(missing, sorted(self._refitted), bare)

    def losses(
        self, candidates: Sequence[Candidate], number: int, bare: Set[SpanChoice] = frozenset()
    ) -> Iterator[Ways]:
        """Yield the losses of candidates on judging batch `number`; of those in `bare` only without refits."""
        entries_of = {candidate.choice: self._entries(candidate, number, bare) for candidate in candidates}
        missing = [c for c in candidates if any(entry not in self._journal for entry in entries_of[c.choice])]
        start, judge = time.perf_counter(), None
        if missing:
            self._fitted.fit(missing, sorted({self._judging[number].fold} & self._refitted), bare)
            judge = self._judge_of(self._judging[number])
        shared = (time.perf_counter() - start) / max(len(missing), 1)
        for candidate in candidates:
            entries = entries_of[candidate.choice]
            if judge is not None and any(entry not in self._journal for entry in entries):
                start = time.perf_counter()
                found = self._scored(candidate, judge, self._judging[number].fold, len(entries))
                seconds = (shared + time.perf_counter() - start) / len(entries)
                for entry, loss in zip(entries, found, strict=True):
                    if entry not in self._journal:
                        self._journal.add(entry, loss, seconds)
            yield tuple(self._journal[entry] for entry in entries)

    def _entries(self, candidate: Candidate, number: int, bare: Set[SpanChoice]) -> list[str]:
        """Return the journal's names for the losses of a candidate."""
        name, choice = self._judging[number].name, candidate.choice
        if choice in bare or self._judging[number].fold not in self._refitted or restores_its_exit(candidate):
            return [f"{choice} on {name}"]
        # journals on disk hold the word readers, for consumers
        return [f"{choice} on {name}", f"{choice} with refitted readers on {name}"]

    def _scored(self, candidate: Candidate, judge: Judge, fold: int, ways: int) -> Ways:
        weights = self._fitted.weights(candidate.choice, fold)
        bare = judge.loss(candidate, weights, {})
        if ways == 1:
            return (bare,)
        consumers = self._fitted.consumers(candidate.choice, fold)
        return bare, judge.loss(candidate, weights, consumers) if consumers else bare


def part_of(candidates: Sequence[Candidate], part: Shard) -> list[Candidate]:
    """Return the candidates of a part, all that share sums together; groups are dealt out by falling work."""
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
