"""Pipeline from a prepared network to a network within the budget: latencies, importance, search, result."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx

from depthcomp.budget import Budget
from depthcomp.errors import BudgetError, BudgetInfeasibleError
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.speed import speed_of
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.scored import Scored
from depthcomp.latency.pricing import Candidate
from depthcomp.latency.table_store import TableStore
from depthcomp.latency.timing import LatencyPredictor, NetworkTimer
from depthcomp.methods.baselines import BaselineFrontier, Materials
from depthcomp.methods.candidates import PricedCandidates, operators_of, problem_of, worthwhile
from depthcomp.preparation import Prepared
from depthcomp.progress import Stages
from depthcomp.results.effort import Effort
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.result import CompressionResult
from depthcomp.runs.task import CompressionTask
from depthcomp.search.forecast import foretold_seconds
from depthcomp.search.plans import Found
from depthcomp.search.search import Search
from depthcomp.warning import warn_caller
from fx_passes import CapturedNetwork, SpanChoice, linearize, merge
from fx_passes.depth import convolution_depth
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.slot_layers import load_operator
from latency_tables import AnyBackend, LatencyTable

__all__ = ["Pipeline"]

_TOO_LITTLE = "no rewrite of a span saves more than 0.5 % of the network's time"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One compression, ready to run.

    Attributes:
        task: the model, the method and the importance.
        budget: the budget that the measured network must meet.
        prepared: the network, its images, and the rewrites that the method may take.
        store: the known latencies; missing ones are measured and added.
        backend: the backend that measures operators.
        timer: measures whole networks with that backend.
        folder: folder for the journal of scores until they are saved; None for no journal.
        stages: names, reports and times the stages.
    """

    task: CompressionTask
    budget: Budget
    prepared: Prepared
    store: TableStore
    backend: AnyBackend
    timer: NetworkTimer
    folder: Path | None
    stages: Stages

    def run(self) -> tuple[CompressionResult, Scored]:
        """Return the result, and the scores that the plan was chosen by.

        Raises:
            BudgetError: the original meets the budget already.
            BudgetInfeasibleError: no plan meets it, or none is faster than the original.
            TableError: the table or a journal cannot be read or written, or the backend refuses an operator.

        Warns:
            UserWarning: some choices were not scored.
        """
        with self.stages("measuring the original"):
            self._require_room(self.prepared.candidates, _refusal(self.prepared))
        with self.stages("measuring operators"):
            priced = worthwhile(self.prepared, self._complete_table())
            self._require_room(priced.candidates, _TOO_LITTLE)
        with self.stages("scoring choices"):
            context = self.task.scoring(self.prepared, priced, folder=self.folder, progress=self.stages.report)
            self._foretell(context)
            scored = self.task.importance.score_all(context)
        for note in scored.notes:
            warn_caller(note)
        with self.stages("searching"):
            search = self._search(priced, scored, context.channels)
            found = search.meet(self.budget)
        priced = replace(priced, table=replace(priced.table, calibration=search.predictor.calibration))
        self.store.keep_calibration(priced.table)
        return self._result(priced, scored, search, found), scored

    def _require_room(self, candidates: Sequence[Candidate], reason: str) -> None:
        original_ms = self.timer.original.median_ms
        if self.budget.target_ms(original_ms) >= original_ms:
            raise BudgetError(
                f"the original, measured at {original_ms:.3f} ms, already meets budget {self.budget}; ask for less"
            )
        if not candidates and not self.prepared.free:
            raise BudgetInfeasibleError(
                f"no span of this network can be made faster than its {original_ms:.3f} ms: {reason}",
                best_ms=original_ms,
            )

    def _foretell(self, context: ScoringContext) -> None:
        """Foretell the time of scoring and search, where the importance can and the search is a solver's with fits."""
        method = self.task.method
        if not method.fits or method.draw is not None:
            return
        speed = speed_of(self.prepared.network, self.prepared.calibration)
        scoring = self.task.importance.foretell(context, speed)
        if scoring is not None:
            measuring = self.stages.seconds["measuring the original"]
            self.stages.foretell(scoring + foretold_seconds(speed, measuring))

    def _complete_table(self) -> LatencyTable:
        """Return a table with every operator that the plans may need."""
        return self.store.complete(
            sorted(operators_of(self.prepared)), self.backend, seed=self.task.seed,
            progress=lambda done, total, key: self.stages.report("measuring operators", done, total),
        )  # fmt: skip

    def _search(self, priced: PricedCandidates, scored: Scored, channels: ChannelOrders) -> Search:
        prepared, task, losses = self.prepared, self.task, scored.losses
        return Search(
            prepared.network, functools.partial(problem_of, prepared, priced), losses,
            LatencyPredictor(self.timer, priced.total_ms, prepared.measured), prepared.calibration, priced.candidates,
            baseline=self._baseline(priced, losses), fits=task.method.fits, seed=task.seed,
            progress=self.stages.report, refit_kept=task.refit_kept, memory_mib=task.importance.memory_mib,
            profiting=scored.table.profiting, channels=channels,
        )  # fmt: skip

    def _baseline(self, priced: PricedCandidates, losses: Mapping[SpanChoice, float]) -> BaselineFrontier | None:
        """Return the plans of a method without a solver; None for a method with one."""
        if self.task.method.draw is None:
            return None
        pricing = self.prepared.pricing
        candidates = [candidate for candidate in priced.candidates if candidate.choice in losses]
        total_ms = pricing.kept_ms(pricing.kept, priced.table.ms)  # of the network with its free merges
        materials = Materials(self.prepared.network, candidates, losses, priced.savings_ms, total_ms, self.task.seed)
        return BaselineFrontier(self.task.method.draw(materials), materials)

    def _result(self, priced: PricedCandidates, scored: Scored, search: Search, found: Found) -> CompressionResult:
        prepared = self.prepared
        trainable = prepared.measured(_trainable(prepared.captured, found))
        model = merge(trainable, found.plan)
        by_choice = {candidate.choice: candidate for candidate in priced.candidates}
        return CompressionResult(
            model=model,
            trainable=trainable,
            plan=found.plan,
            frontier=tuple(_frontier_points(search)),
            budget=self.budget,
            budget_ms=self.budget.target_ms(found.original.median_ms),
            original_timing=found.original,
            measured_timing=found.measured,
            predicted_ms=found.predicted_ms,
            loss=found.loss,
            rank_correlation=search.rank_correlation(),
            original_depth=convolution_depth(prepared.original),
            depth=convolution_depth(model),
            spans=tuple(_record(by_choice[c], prepared, priced.table, scored.losses[c]) for c in found.plan),
            refusals=prepared.refusals,
            warnings=(*prepared.notes, *scored.notes),
            environment=self.store.environment,
            table=priced.table,
            example_inputs=prepared.example.tensors,
            seed=self.task.seed,
            seconds=dict(self.stages.seconds),
            free_merges=prepared.free,
            importance=scored.table,
            original=prepared.original,
            method=self.task.method.name,
            effort=_effort(priced, scored, search, self.stages.foretold_seconds),
            judged_by=prepared.judged_by,
            excluded=prepared.excluded,
        )


def _effort(priced: PricedCandidates, scored: Scored, search: Search, foretold_seconds: float | None) -> Effort:
    table = scored.table
    fitted = (len(candidate.slots) for candidate in priced.candidates if candidate.choice in table.losses)
    return Effort(
        choices=len(priced.candidates),
        scored=len(table.losses),
        fits=sum(fitted),
        true_losses=len(table.losses) if table.check is None else table.check.choices,
        plans_compared=len(search.comparer.glances),
        plans_verified=len(search.comparer.verified),
        networks_measured=search.predictor.calibration.n - 1,  # the original is one of them
        foretold_seconds=foretold_seconds,
    )


def _refusal(prepared: Prepared) -> str:
    """Return why nothing can be rewritten."""
    return f"for example, {prepared.refusals[0].reason}" if prepared.refusals else "it holds no span of convolutions"


def _trainable(captured: CapturedNetwork, found: Found) -> fx.GraphModule:
    """Return the found plan's linearized graph, with unfolded norms and the solved weights."""
    trainable = GraphFacts(linearize(captured, found.plan))
    for name, operator in found.solved.items():
        load_operator(trainable, name, operator)
    return trainable.gm


def _frontier_points(search: Search) -> Iterator[FrontierPoint]:
    for option in map(search.option, range(len(search.frontier))):
        yield FrontierPoint(search.predictor.predict(option.sum_ms), option.importance, option.plan)


def _record(candidate: Candidate, prepared: Prepared, table: LatencyTable, loss: float) -> SpanRecord:
    pricing, span = prepared.pricing, candidate.span
    kept_ms, saving_ms = pricing.kept_ms(span.nodes, table.ms), pricing.saving_ms(candidate, table.ms)
    return SpanRecord(
        candidate.choice, prepared.network.words(span.nodes), pricing.convolutions(span), kept_ms, kept_ms - saving_ms,
        loss, kind_of(candidate.choice).details(candidate.choice, candidate.piece),
    )  # fmt: skip
