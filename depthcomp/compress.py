"""The pipeline: capture, spans, latencies, importance, frontier, plan, refit, merge, measurement."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from torch import Tensor, fx, nn

from depthcomp.budget import Budget
from depthcomp.data.batches import Data
from depthcomp.depth import convolution_depth
from depthcomp.errors import BudgetError, BudgetInfeasibleError, DepthCompError, TrainingError
from depthcomp.files import require_writable
from depthcomp.fitting.compensation import load_operator
from depthcomp.importance.config import ImportanceConfig
from depthcomp.importance.scoring import Importance, Scored, memory_mib, most_images, parse_importance, score_choices
from depthcomp.importance.table import ImportanceTable
from depthcomp.ladders import Ladder
from depthcomp.ladders import Offer as LadderOffer
from depthcomp.methods import Method, find_method
from depthcomp.offer import Offer, operators_of, worthwhile
from depthcomp.preparation import Prepared, measurable, prepare
from depthcomp.pricing import Candidate, Pricing
from depthcomp.progress import Progress, Stages
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.result import CompressionResult
from depthcomp.saved_compression import SavedCompression, settings_hash
from depthcomp.search import Found, Search
from depthcomp.table_store import TableStore
from depthcomp.timing import LatencyPredictor, NetworkTimer
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import rehearse
from depthcomp.tuned_result import CHECKPOINTS, require_tunable, tuned
from dp_solver import Chain
from fx_passes import SpanChoice, linearize, merge, placed_convolutions
from latency_tables import AnyBackend, Environment, LatencyTable, as_backend

__all__ = ["compress_depth"]

_TOO_LITTLE = "no rewrite of a span saves more than 0.5 % of the network's time"


def compress_depth(
    model: nn.Module,
    budget: str | Budget,
    *,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    data: Data | None = None,
    val_data: Data | None = None,
    backend: str | AnyBackend = "auto",
    table: LatencyTable | str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    method: str = "depthcomp",
    importance: Importance = "calibrated",
    finetune: FinetuneConfig | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressionResult:
    """Return a shallower network that meets a latency budget when measured; `model` is not changed.

    Args:
        model: a trained CNN that torch.fx can trace and that takes one batch of images.
        budget: "70%" of the measured original, "1.8ms", "1.4x", or a `Budget`.
        example_inputs: a batch of images (n, c, h, w); latency is measured at this shape. Taken from the data,
            or else from the model's own configuration, where absent.
        data: calibration images, normalised as for training: a DataLoader, a Dataset or an iterable of x, (x, y)
            or dicts; integer classes y are used. 512 images are read at most, of small ones more; see
            `CalibratedImportance`. Absent: synthetic images with the spectrum of natural ones, and a warning.
        val_data: other images, on which the loss is estimated and nothing is fitted; absent: each third of `data`
            in turn, by fits on the other two.
        backend: one of `latency_tables.backends.BACKEND_NAMES`, such as "onnxruntime", "openvino", "torch" or
            "torch_compile"; "auto"; or an instance such as `create_backend("onnxruntime", threads=4)`.
        table: a latency table of this machine, or its path; what it lacks is measured and, given a path, added, as is
            the line from sums of its entries to the whole networks that are measured here.
        precision: "fp32".
        method: how the plan is chosen, one of `depthcomp.methods.METHODS`: "depthcomp", or for comparison "kim23",
            "layermerge", "depthshrinker", "uniform" or "random", which fit nothing: train what they return.
        importance: what a choice costs in loss: "calibrated", by closed-form fits, no training; "kim23" or
            "layermerge", by a little training of each choice; settings, such as `FinetunedImportance(steps=100)`; or
            the path of an importance.json that an earlier run left in its `output_dir`.
        finetune: how to fine-tune what was found, with the original as teacher, on all of `data` and on the labels in
            them; `val_data`, or else a part of `data`, decides whether that was any good. None: not at all.
        output_dir: where everything is saved; a run that is killed while measuring latencies, scoring choices or
            fine-tuning resumes from there where it is called alike, with data in the same order. What was measured in
            other environments stays beside it.
        seed: of everything random.
        progress: called as (stage, done, total).

    Raises:
        BudgetError: the budget is malformed, or met by the original already.
        BudgetInfeasibleError: no plan meets the budget, or none is faster than the original when both are measured
            side by side; `best_ms` is what the fastest one was measured at.
        CaptureError: the model or its example inputs are unusable.
        DataError: the data are empty or do not fit the model, or cannot be read twice to fine-tune.
        DepthCompError: `method` is unknown.
        BackendUnavailableError: `backend` is unknown, or no backend.
        MissingPackageError: the backend's library is not installed.
        TableMismatchError: the table was measured in another environment.
        TableError: the table or the journal in `output_dir` cannot be read or written, the backend refuses the
            network or an operator, or the table says that one of the network's own could not be measured.
        ArtifactError: `output_dir` cannot be written, or the network cannot be exported to ONNX.
        TrainingError: fine-tuning cannot go on. The error's `result` is what was compressed, where that was done.

    Example:
        >>> result = compress_depth(model, "75%", data=loader)             # doctest: +SKIP
        >>> result.original_ms, result.predicted_ms, result.measured_ms    # doctest: +SKIP
    """
    wanted, chosen = Budget.parse(budget), find_method(method)
    _require_supported(precision)
    scoring = parse_importance(importance if chosen.scored else ImportanceTable({}))
    require_tunable(finetune, data, val_data)
    runtime = as_backend(backend)
    folder = None if output_dir is None else require_writable(output_dir)
    store, stages = TableStore.open(table, runtime.environment(), folder), Stages(progress)

    with stages("capturing"):
        prepared = measurable(
            prepare(model, example_inputs, data, val_data, seed, most=most_images(scoring), limits=chosen.limits),
            store.failures,
        )
        prepared = replace(prepared, candidates=chosen.candidates(prepared.network, prepared.candidates))
        if finetune is not None:
            rehearse(prepared.captured, data, val_data, finetune)
        _announce(prepared.notes)
    timer = NetworkTimer(prepared.original, (prepared.example,), runtime, seed=seed, progress=stages.report)

    def tune(result: CompressionResult, config: FinetuneConfig, stages: Stages) -> CompressionResult:
        try:
            return tuned(
                result, prepared.network, data, val_data, config, timer, stages,
                checkpoints=None if folder is None else folder / CHECKPOINTS, out=folder,
                calibration=prepared.calibration.batches, anew=True,
            )  # fmt: skip
        except Exception as error:
            raise TrainingError(f"{error}; what was compressed is the `result` of this error", result=result) from error

    saved = None
    if folder is not None:
        settings = settings_hash(prepared, wanted, chosen.name, scoring, seed, runtime.environment())
        saved = SavedCompression(folder, settings)
    if saved is not None and finetune is not None and (unfinished := saved.unfinished(prepared)) is not None:
        return tune(unfinished, finetune, Stages(progress, unfinished.seconds))
    with stages("measuring the original"):
        _require_room(wanted, timer.original.median_ms, prepared.candidates, prepared, _refusal(prepared))
    with stages("measuring operators"):
        offer = worthwhile(prepared, _complete(store, prepared, runtime, seed, stages.report))
        _require_room(wanted, timer.original.median_ms, offer.candidates, prepared, _TOO_LITTLE)
    with stages("scoring choices"):
        scored = _scored(chosen, prepared, offer, scoring, folder, seed, stages.report)
        _announce(scored.notes)
        losses = scored.losses
    with stages("searching"):
        search = _search(
            chosen, prepared, offer, losses, timer, seed, stages.report,
            refit_kept=data is not None, memory_mib=memory_mib(scoring),
        )  # fmt: skip
        found = search.meet(wanted)

    offer = replace(offer, table=replace(offer.table, calibration=search.predictor.calibration))
    store.keep_calibration(offer.table)
    result = _result(
        chosen, prepared, offer, scored, search, found,
        budget=wanted, environment=store.environment, seed=seed, seconds=stages.seconds,
    )  # fmt: skip
    if saved is not None:
        with stages("saving"):
            result = saved.save(result, to_be_tuned=finetune is not None)
            store.forget_journal()  # all of it stands in latency_table.json now
            scored.journal.forget()  # and in importance.json
    return result if finetune is None else tune(result, finetune, stages)


def _require_supported(precision: str) -> None:
    if precision != "fp32":
        raise DepthCompError(f"precision (={precision!r}) must be 'fp32', in which operators are timed")


def _announce(notes: Iterable[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=3)


def _complete(
    store: TableStore, prepared: Prepared, backend: AnyBackend, seed: int, progress: Progress
) -> LatencyTable:
    """Return a table with every operator that the plans may need."""
    return store.complete(
        sorted(operators_of(prepared)), backend, seed=seed,
        progress=lambda done, total, key: progress("measuring operators", done, total),
    )  # fmt: skip


def _scored(
    method: Method,
    prepared: Prepared,
    offer: Offer,
    importance: ImportanceConfig | ImportanceTable,
    folder: Path | None,
    seed: int,
    progress: Progress,
) -> Scored:
    """Return the losses of the rewrites; where the method asks for none, no loss for each."""
    if not method.scored:
        losses = dict.fromkeys((candidate.choice for candidate in offer.candidates), 0.0)
        return Scored(ImportanceTable(losses, method="none"), losses)
    return score_choices(
        prepared, offer.candidates, offer.savings_ms, importance, folder=folder, seed=seed, progress=progress
    )


def _search(
    method: Method,
    prepared: Prepared,
    offer: Offer,
    losses: Mapping[SpanChoice, float],
    timer: NetworkTimer,
    seed: int,
    progress: Progress,
    *,
    refit_kept: bool,
    memory_mib: int,
) -> Search:
    def problem(without: Set[SpanChoice]) -> Chain:
        kept = {choice: loss for choice, loss in losses.items() if choice not in without}
        return prepared.pricing.problem(prepared.tree, offer.candidates, kept, offer.table.ms)

    predictor = LatencyPredictor(timer, offer.total_ms)
    return Search(
        prepared.network, problem, predictor, prepared.calibration,
        ladder=_ladder(method, prepared, offer, losses, seed), fits=method.fits, seed=seed, progress=progress,
        refit_kept=refit_kept, memory_mib=memory_mib,
    )  # fmt: skip


def _ladder(
    method: Method, prepared: Prepared, offer: Offer, losses: Mapping[SpanChoice, float], seed: int
) -> Ladder | None:
    """Return the plans that a method chooses among where no solver does."""
    if method.draw is None:
        return None
    total_ms = prepared.pricing.kept_ms(prepared.pricing.kept, offer.table.ms)  # of the network with its free merges
    room = LadderOffer(prepared.network, offer.candidates, losses, offer.savings_ms, total_ms, seed)
    return Ladder(method.draw(room), room)


def _refusal(prepared: Prepared) -> str:
    """Return why nothing can be rewritten."""
    return f"for example, {prepared.refusals[0].reason}" if prepared.refusals else "it holds no span of convolutions"


def _require_room(
    budget: Budget, original_ms: float, candidates: Sequence[Candidate], prepared: Prepared, reason: str
) -> None:
    if budget.target_ms(original_ms) >= original_ms:
        raise BudgetError(
            f"budget {budget} is met by the original already, measured at {original_ms:.3f} ms; ask for less"
        )
    if not candidates and not prepared.free:
        raise BudgetInfeasibleError(
            f"nothing in this network can be made faster, so {original_ms:.3f} ms is the best: {reason}",
            best_ms=original_ms,
        )


def _result(
    method: Method,
    prepared: Prepared,
    offer: Offer,
    scored: Scored,
    search: Search,
    found: Found,
    *,
    budget: Budget,
    environment: Environment,
    seed: int,
    seconds: dict[str, float],
) -> CompressionResult:
    trainable = _trainable(prepared.captured, found)
    model = merge(trainable, found.plan)
    by_choice = {candidate.choice: candidate for candidate in offer.candidates}
    return CompressionResult(
        model=model,
        trainable=trainable,
        plan=found.plan,
        frontier=tuple(_frontier_points(search)),
        budget=budget,
        budget_ms=budget.target_ms(found.original.median_ms),
        original_timing=found.original,
        measured_timing=found.measured,
        predicted_ms=found.predicted_ms,
        loss=found.loss,
        rank_correlation=search.rank_correlation(),
        original_depth=convolution_depth(prepared.original),
        depth=convolution_depth(model),
        spans=tuple(_record(by_choice[c], prepared.pricing, offer.table, scored.losses[c]) for c in found.plan),
        refusals=prepared.refusals,
        warnings=(*prepared.notes, *scored.notes),
        environment=environment,
        table=offer.table,
        example_inputs=(prepared.example,),
        seed=seed,
        seconds=seconds,
        free_merges=prepared.free,
        importance=scored.table,
        original=prepared.original,
        method=method.name,
    )


def _trainable(captured: fx.GraphModule, found: Found) -> fx.GraphModule:
    """Return the found plan's linearized graph with norms that are not folded, and with the weights found."""
    trainable = linearize(captured, found.plan)
    pairs = zip(
        placed_convolutions(found.linearized, found.plan), placed_convolutions(trainable, found.plan), strict=True
    )
    for fitted, place in pairs:
        place.load(fitted.operator)
    for name, operator in found.kept.items():
        load_operator(trainable, name, operator)
    return trainable


def _frontier_points(search: Search) -> Iterator[FrontierPoint]:
    for option in map(search.option, range(len(search.frontier))):
        yield FrontierPoint(search.predictor.predict(option.sum_ms), option.importance, option.plan)


def _record(candidate: Candidate, pricing: Pricing, table: LatencyTable, loss: float) -> SpanRecord:
    kept_ms = pricing.kept_ms(candidate.span.nodes, table.ms)
    saving_ms = pricing.saving_ms(candidate, table.ms)
    return SpanRecord(candidate.choice, pricing.convolutions(candidate.span), kept_ms, kept_ms - saving_ms, loss)
