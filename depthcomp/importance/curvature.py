"""Losses of choices by the curvature of the network's loss, without a forward of the rest of the network.

One forward and a few backward passes of each judging batch give the sensitivity of the loss behind every span, where
all of its change comes together again after the next kept layers. A candidate then costs its own body, these layers
and an inner product (`depthcomp.fitting.sensitivity`). Candidates that cannot enter the latency-loss frontier by these
estimates are not fitted (`depthcomp.importance.contenders`). Those on the frontier get true losses, and a few others
over the whole network. A monotone curve through both losses corrects the other estimates, which hold for small changes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from depthcomp.data.output_loss import DEFAULT_LOSS, OutputLoss
from depthcomp.fingerprint import seed_of
from depthcomp.fitting.candidates import Weights, refitted_layers, replacement
from depthcomp.fitting.kept_slots import consumers_of
from depthcomp.fitting.sensitivity import Sensitivity
from depthcomp.fitting.speed import Speed, fit_work
from depthcomp.importance.candidate_scorer import CandidateScorer, JudgingBatch, part_of
from depthcomp.importance.contenders import Contenders
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.estimate_check import EstimateCheck, check_estimates, correction, exit_factors
from depthcomp.importance.fitted_candidates import FittedCandidates
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.importance.ways import Ways, least, profiting
from depthcomp.latency.pricing import Candidate
from fx_passes import CapturedNetwork, SpanChoice
from fx_passes.affine import AffineConv
from latency_tables.fleet.work import Shard

__all__ = ["CurvatureJudges", "CurvatureScores", "curvature", "foretold_seconds", "score_part"]

BATCHES = 3  # that judge, the folds in turns: true losses on three of six batches rank as on all (Spearman 0.996)
LABELLED_BATCHES = 6  # where labels count; with a ResNet on Fashion-MNIST three rank choices at 0.94, six at 0.96
FORWARDS, FORWARDS_EACH_PASS = 230, 2  # of a scoring, in batches; see `foretold_seconds`
FITS, MULTIPLY_ADDS_EACH = 1.6, 5e10  # of a scoring: the share of foreseen fits, and more for each candidate
DOUBT = 0.75  # share of an estimate that the true loss may be
CHECKED = 48  # choices over the whole network that get true losses besides those on the frontier
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CurvatureScores:
    """Losses of candidates by curvature.

    Attributes:
        losses: the loss of each choice that can enter the frontier.
        profiting: the choices whose loss is less with refitted consumers.
        check: how well the estimates agree with true losses; None where none could be compared.
        unestimated: the choices whose change no gradient reaches; their losses are true ones.
    """

    losses: Mapping[SpanChoice, float]
    profiting: frozenset[SpanChoice]
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

    Each score has the bits that `curvature` would give it. Only the candidates that `curvature` always scores are
    scored: the scores of all parts decide which others there are. The arguments are as for `curvature`.
    """
    return _Scoring(context, journal, draws).of_part(part)


def foretold_seconds(context: ScoringContext, speed: Speed) -> float:
    """Return about how many seconds `curvature` will take.

    The factors were fitted to runs with ResNet-18, ResNet-50 and EfficientNet-Lite0 (`scripts/bench_scaling.py`).
    """
    first = next(Contenders(context.candidates, context.on_frontier).rounds({})).candidates
    calibration = context.prepared.calibration
    work = fit_work(first, calibration, context.memory)
    forwards = FORWARDS + FORWARDS_EACH_PASS * work.passes * len(calibration.batches)
    multiply_adds = FITS * work.multiply_adds + MULTIPLY_ADDS_EACH * len(context.candidates)
    return speed.seconds(forwards=forwards, multiply_adds=multiply_adds)


class CurvatureJudges:
    """Judges by curvature for the candidates of one network.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        candidates: the candidates.
        draws: number of random probes of the output for each image.
        seed: seed of the probes.
        judging: the loss of outputs.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        candidates: Sequence[Candidate],
        draws: int,
        seed: int,
        judging: OutputLoss = DEFAULT_LOSS,
    ) -> None:
        self._network, self._draws, self._seed, self._judging = network, draws, seed, judging
        exits = dict.fromkeys(candidate.choice.exit for candidate in candidates)
        self._joins = {exit_: _join(network, exit_) for exit_ in exits}

    def on(self, batch: JudgingBatch) -> _CurvatureJudge:
        """Return the judge of a batch."""
        sensitivity = Sensitivity(
            self._network.gm, batch.images, set(self._joins.values()), draws=self._draws,
            generator=torch.Generator().manual_seed(seed_of(self._seed, batch.name)), labels=batch.labels,
            judging=self._judging,
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
        refitted = refitted_layers(tail.gm, consumers)
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
        self._fitted = FittedCandidates(
            network, calibration,
            seed=context.seed, report=context.progress, memory=context.memory, refit_kept=context.refit_kept,
            channels=context.channels,
        )  # fmt: skip
        judges = CurvatureJudges(network, context.candidates, draws, context.seed, calibration.loss)
        batches = judging_batches(calibration)[: BATCHES if calibration.labels is None else LABELLED_BATCHES]
        some = judges.within(batches, context.memory.mib)
        self._estimates = CandidateScorer(self._fitted, some, judges.on, journal, refitted={batches[0].fold})
        true_loss = functools.partial(TrueLoss, network, judging=calibration.loss)
        self._true = CandidateScorer(self._fitted, batches, true_loss, journal)

    def of_all(self) -> CurvatureScores:
        """Return the losses of the candidates that can enter the frontier."""
        ways: dict[SpanChoice, list[Ways]] = {}
        estimates: dict[SpanChoice, float] = {}
        for next_ in self._contenders.rounds(estimates):
            for found in self._losses(self._estimates, next_.candidates, "estimating losses", next_.bare):
                ways |= found
                estimates |= {choice: least(several) for choice, several in found.items()}
                self._free_all_but_the_nearest(estimates)
        scored = [candidate for candidate in self._context.candidates if candidate.choice in ways]
        blind = [candidate for candidate in scored if math.isnan(estimates[candidate.choice])]
        bare = ways.keys() - profiting(ways) - {candidate.choice for candidate in blind}
        true, wanted = dict[SpanChoice, list[Ways]](), self._to_verify(estimates)
        losses: Mapping[SpanChoice, float] = {}
        while wanted:
            some = [candidate for candidate in scored if candidate.choice in wanted]
            for found in self._losses(self._true, some, "verifying losses", bare):
                true |= found
                self._fitted.free(found.keys())
            losses = _corrected(estimates, true)
            wanted = self._unverified(losses, true)
        check = check_estimates(*_pairs(estimates, true))
        return CurvatureScores(losses, profiting(ways | true), check, tuple(candidate.choice for candidate in blind))

    def of_part(self, part: Shard) -> int:
        """Score the first round of a part of the candidates, and return the number of their entries."""
        first = next(self._contenders.rounds({}))
        always = {candidate.choice for candidate in first.candidates}
        some = [candidate for candidate in part_of(self._context.candidates, part) if candidate.choice in always]
        entries = 0
        for found in self._losses(self._estimates, some, "estimating losses", first.bare):
            entries += sum(len(ways) for several in found.values() for ways in several)
            self._fitted.free(found.keys())
        return entries

    def _free_all_but_the_nearest(self, estimates: Mapping[SpanChoice, float]) -> None:
        """Free weights beyond the memory, so that those stay that will probably be verified."""
        if self._fitted.exceeds_memory:
            self._fitted.keep(itertools.chain(self._to_verify(estimates), self._nearest_to_frontier(estimates)))

    def _to_verify(self, estimates: Mapping[SpanChoice, float]) -> set[SpanChoice]:
        """Return the choices to verify wherever they stand: some of each exit, and those without an estimate."""
        scored = [candidate.choice for candidate in self._context.candidates if candidate.choice in estimates]
        return {*_spread(scored, estimates), *(choice for choice in scored if math.isnan(estimates[choice]))}

    def _nearest_to_frontier(self, estimates: Mapping[SpanChoice, float]) -> Iterator[SpanChoice]:
        """Yield choices by their need for true losses: the frontier's, then the frontier's without these, and so on."""
        on_frontier = self._context.on_frontier
        others = {choice: loss for choice, loss in estimates.items() if not math.isnan(loss)}
        while on_frontier is not None and (layer := on_frontier(others)):
            yield from sorted(layer, key=str)
            others = {choice: loss for choice, loss in others.items() if choice not in layer}

    def _unverified(self, losses: Mapping[SpanChoice, float], true: Mapping[SpanChoice, object]) -> set[SpanChoice]:
        """Return the choices on the frontier whose true loss is unknown, and may be less than estimated."""
        if self._context.on_frontier is None:
            return set()
        finite = {choice: loss for choice, loss in losses.items() if not math.isnan(loss)}
        hoped = {choice: loss if choice in true else DOUBT * loss for choice, loss in finite.items()}
        return self._context.on_frontier(hoped) - true.keys()

    def _losses(
        self,
        scorer: CandidateScorer,
        candidates: Sequence[Candidate],
        what: str,
        bare: Set[SpanChoice] = frozenset(),
    ) -> Iterator[dict[SpanChoice, list[Ways]]]:
        """Yield the losses of candidates on all batches of a scorer, in parts; of those in `bare` without refits."""
        done, total = itertools.count(1), scorer.batches * len(candidates)
        for part in scorer.parts(candidates, bare):
            found: dict[SpanChoice, list[Ways]] = {candidate.choice: [] for candidate in part}
            scorer.fit(part, bare)
            for number in range(scorer.batches):
                for candidate, ways in zip(part, scorer.losses(part, number, bare), strict=True):
                    found[candidate.choice].append(ways)
                    self._context.progress(what, next(done), total)
            yield found


def _spread(choices: Sequence[SpanChoice], estimates: Mapping[SpanChoice, float]) -> list[SpanChoice]:
    """Return up to CHECKED choices with an estimate: of each exit the median one, then the next ones around it."""
    exits: dict[str, list[SpanChoice]] = {}
    for choice in choices:
        if not math.isnan(estimates[choice]):
            exits.setdefault(choice.exit, []).append(choice)
    groups, count = list(exits.values()), min(CHECKED, len(exits))
    some = (sorted(groups[k * len(groups) // count], key=estimates.__getitem__) for k in range(count))
    turns = itertools.zip_longest(*map(_from_the_middle, some))
    return list(itertools.islice((choice for turn in turns for choice in turn if choice is not None), CHECKED))


def _from_the_middle(choices: Sequence[SpanChoice]) -> list[SpanChoice]:
    """Return choices in the order of their distance from the middle of the sequence."""
    return [choices[k] for k in sorted(range(len(choices)), key=lambda k: abs(2 * k - len(choices)))]


def _corrected(
    estimates: Mapping[SpanChoice, float], true: Mapping[SpanChoice, Sequence[Ways]]
) -> dict[SpanChoice, float]:
    """Return the true loss of each choice, or its estimate corrected by the choices that have both.

    One curve corrects all estimates. Then the choices of one exit are corrected alike, as what comes behind it decides
    much of the error. Over EfficientNet-Lite0's choices the rank correlation was 0.946 and 0.938 (two seeds) with the
    curve through 24 choices alone, and 0.973 and 0.965 with this correction and 48 choices.
    """
    curve = correction(*_pairs(estimates, true))
    corrected = {choice: curve(max(estimate, 0.0)) for choice, estimate in estimates.items()}
    known = {choice: max(least(ways), 0.0) for choice, ways in true.items()}
    factors = exit_factors(corrected, known)
    return {choice: loss * factors.get(choice.exit, 1.0) for choice, loss in corrected.items()} | known


def _pairs(
    estimates: Mapping[SpanChoice, float], true: Mapping[SpanChoice, Sequence[Ways]]
) -> tuple[list[float], list[float]]:
    """Return the estimates and the true losses of the choices that have both."""
    both = [choice for choice in true if not math.isnan(estimates[choice])]
    return [estimates[choice] for choice in both], [max(least(true[choice]), 0.0) for choice in both]


def _parts(batch: JudgingBatch, largest: int) -> Iterator[JudgingBatch]:
    """Yield a batch in parts of at most `largest` images, with names of their own."""
    count = -(-len(batch.images) // largest)
    labels: Sequence[Tensor | None] = (
        [None] * count if batch.labels is None else torch.tensor_split(batch.labels, count)
    )
    for number, (images, classes) in enumerate(zip(batch.images.split(count), labels, strict=True)):
        yield JudgingBatch(f"part {number + 1} of {count} of {batch.name}, by curvature", batch.fold, images, classes)


def _elements(meta: Mapping[str, object]) -> int:
    """Return the number of elements of a node's tensor for one image; 0 where it is no tensor."""
    shape = getattr(meta.get("tensor_meta"), "shape", ())
    return math.prod(shape[1:]) if shape else 0
