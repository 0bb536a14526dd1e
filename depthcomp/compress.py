"""The pipeline: capture, spans, latencies, importance, frontier, plan, refit, merge, measurement."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from depthcomp.artifacts import require_writable
from depthcomp.budget import Budget
from depthcomp.data import calibration_batches, in_batches, synthetic_batches
from depthcomp.depth import convolution_depth
from depthcomp.errors import BudgetError, BudgetInfeasibleError, DepthCompError
from depthcomp.importance import LARGEST_SYSTEM, calibrated, unknowns
from depthcomp.inputs import infer_example
from depthcomp.pricing import Candidate, Pricing
from depthcomp.result import CompressionResult, FrontierPoint, Refusal, SpanRecord
from depthcomp.search import Search
from depthcomp.timing import NetworkTimer
from dp_solver import Chain
from fx_passes import (
    Plan,
    Span,
    SpanChoice,
    capture,
    enumerate_spans,
    linearize,
    merge,
    placed_convolutions,
    structure_tree,
)
from fx_passes.merge import fold_batch_norms
from latency_tables import Backend, LatencyTable, create_backend, measure

__all__ = ["compress_depth"]

Progress = Callable[[str, int, int], None]
SYNTHETIC_IMAGES = 64
HELD_OUT_SHARE = 0.25  # of the calibration images, where no val_data is given
LEAST_SAVING = 0.005  # of the network's latency; what saves less is lost in the noise of measuring


def compress_depth(
    model: nn.Module,
    budget: str | Budget,
    *,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    data: Iterable[Any] | None = None,
    val_data: Iterable[Any] | None = None,
    backend: str | Backend = "auto",
    table: LatencyTable | str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    importance: str = "calibrated",
    finetune: None = None,
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
        data: calibration images: a DataLoader or an iterable of x, (x, y) or dicts; labels are not used. Absent:
            synthetic images with the spectrum of natural ones, and a warning.
        val_data: other images, on which the loss is estimated; absent: the last quarter of `data`.
        backend: "auto", "onnxruntime", or an instance such as `create_backend("onnxruntime", threads=4)`.
        table: a latency table of this machine, or its path; what it lacks is measured and, given a path, added.
        precision: "fp32".
        importance: "calibrated": closed-form fits and the divergence of outputs, no labels, no training.
        finetune: None; train `result.trainable` and call `fx_passes.merge` with `result.plan` to fine-tune.
        output_dir: where everything is saved; a run that is killed while measuring latencies resumes from there.
        seed: of everything random.
        progress: called as (stage, done, total).

    Raises:
        BudgetError: the budget is malformed, or met by the original already.
        BudgetInfeasibleError: no plan meets the budget; `best_ms` is what the fastest one was measured at.
        CaptureError: the model or its example inputs are unusable.
        DataError: the data are empty or do not fit the model.
        TableMismatchError: the table was measured in another environment.
        ArtifactError: `output_dir` cannot be written.

    Example:
        >>> result = compress_depth(model, "75%", data=loader)             # doctest: +SKIP
        >>> result.original_ms, result.predicted_ms, result.measured_ms    # doctest: +SKIP
    """
    wanted = Budget.parse(budget)
    _require_supported(precision, importance, finetune)
    folder = None if output_dir is None else require_writable(output_dir)
    runtime = create_backend(backend) if isinstance(backend, str) else backend
    stages = _Stages(progress)

    with stages("capturing"):
        example, data, guess = infer_example(model, example_inputs, data)
        captured = capture(model, example)
        network = copy.deepcopy(captured)
        fold_batch_norms(network)
        network.recompile()
        images, held_out, notes = _images(data, val_data, example, seed)
        spoken = _announce(guess, *notes)
        spans, tree, pricing = enumerate_spans(network), structure_tree(network), Pricing(network)
        candidates, too_large = solvable(pricing.candidates(spans))

    with stages("measuring operators"):
        known = _complete_table(pricing, candidates, runtime, table, folder, seed, stages)
        savings_ms = {candidate.choice: pricing.saving_ms(candidate, known.ms) for candidate in candidates}
        least = LEAST_SAVING * pricing.kept_ms(pricing.kept, known.ms)
        faster = [candidate for candidate in candidates if savings_ms[candidate.choice] > least]
    with stages("measuring the original"):
        total_ms = pricing.kept_ms(pricing.kept, known.ms)
        timer = NetworkTimer(network, (example,), total_ms, runtime, seed=seed, progress=stages.report)
        _require_room(wanted, timer.original.median_ms, faster, spans)

    with stages("scoring choices"):
        losses = calibrated(network, faster, images, held_out, savings_ms, seed=seed, progress=stages.report)
    with stages("searching"):

        def problem(without: Set[SpanChoice]) -> Chain:
            kept = {choice: loss for choice, loss in losses.items() if choice not in without}
            return pricing.problem(tree, faster, kept, known.ms)

        search = Search(network, problem, timer, images, held_out, seed=seed, progress=stages.report)
        found = search.meet(wanted)

    by_choice = {candidate.choice: candidate for candidate in faster}
    trainable = linearize(captured, found.plan)
    _copy_fits(found.linearized, trainable, found.plan)
    result = CompressionResult(
        model=merge(trainable, found.plan),
        trainable=trainable,
        plan=found.plan,
        frontier=tuple(_frontier_points(search)),
        budget=wanted,
        budget_ms=wanted.target_ms(found.original.median_ms),
        original_timing=found.original,
        measured_timing=found.measured,
        predicted_ms=found.predicted_ms,
        loss=found.loss,
        rank_correlation=search.rank_correlation(),
        original_depth=convolution_depth(network),
        depth=convolution_depth(merge(found.linearized, found.plan)),
        spans=tuple(_record(by_choice[choice], pricing, known, losses[choice]) for choice in found.plan),
        refusals=(*_refusals(spans), *too_large),
        warnings=spoken,
        environment=runtime.environment(),
        table=known,
        example_inputs=(example,),
        seed=seed,
        seconds=stages.seconds,
    )
    if folder is not None:
        with stages("saving"):
            result.save(folder)
            for name in ("latency_journal.jsonl", "latency_journal.jsonl.lock"):
                (folder / name).unlink(missing_ok=True)  # all of it stands in latency_table.json now
    return result


class _Stages:
    """Times the stages and passes their progress on."""

    def __init__(self, progress: Progress | None) -> None:
        self.report: Progress = progress or (lambda stage, done, total: None)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.report(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.report(name, 1, 1)


def _require_supported(precision: str, importance: str, finetune: object) -> None:
    if precision != "fp32":
        raise DepthCompError(f"precision (={precision!r}) must be 'fp32': ONNX Runtime's CPU kernels are timed in it")
    if importance != "calibrated":
        raise DepthCompError(f"importance (={importance!r}) must be 'calibrated'")
    if finetune is not None:
        raise DepthCompError(
            f"finetune (={finetune!r}) must be None: train result.trainable with your own loop, "
            "then call fx_passes.merge(result.trainable, result.plan)"
        )


def _images(
    data: Iterable[Any] | None, val_data: Iterable[Any] | None, example: Tensor, seed: int
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Return batches to fit on, batches to score on, and what the user should know about them."""
    notes = []
    if data is None:
        batches = synthetic_batches(example, SYNTHETIC_IMAGES, seed)
        notes.append(
            "no data: importance comes from the weights alone, on synthetic images; pass data=, even a few dozen "
            "unlabelled images, for a far better choice"
        )
    else:
        batches = calibration_batches(data, example)
    if val_data is not None:
        return batches, _mixed(calibration_batches(val_data, example, argument="val_data"), seed), notes
    images = torch.cat(batches)
    held_out = max(1, round(len(images) * HELD_OUT_SHARE)) if len(images) > 1 else 0
    if held_out == 0:
        notes.append("one calibration image: the loss is estimated on the image that was fitted to")
        return batches, batches, notes
    return in_batches(images[:-held_out]), _mixed(in_batches(images[-held_out:]), seed), notes


def _mixed(batches: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return the images in another order, so that each batch stands for all of them."""
    images = torch.cat(list(batches))
    return in_batches(images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))])


def _complete_table(
    pricing: Pricing,
    candidates: Sequence[Candidate],
    backend: Backend,
    table: LatencyTable | str | os.PathLike[str] | None,
    folder: Path | None,
    seed: int,
    stages: _Stages,
) -> LatencyTable:
    """Return a table with every operator that the plans may need; a table given by its path is extended there."""
    path = None if table is None or isinstance(table, LatencyTable) else Path(table)
    known = table if isinstance(table, LatencyTable) else None
    if path is not None and path.exists():
        known = LatencyTable.load(path)
    complete = measure(
        pricing.signatures(candidates), backend, table=known, seed=seed,
        journal=None if folder is None else folder / "latency_journal.jsonl",
        progress=lambda done, total, key: stages.report("measuring operators", done, total),
    )  # fmt: skip
    if path is not None:
        complete.save(path)
    return complete


def solvable(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[Refusal]]:
    """Return the candidates whose fit is a system of bearable size, and a refusal for each of the others."""
    kept, refused = [], []
    for candidate in candidates:
        if candidate.choice.kind == "fit" and unknowns(candidate) > LARGEST_SYSTEM:
            reason = (
                f"a fit of {candidate.choice.kernel} pixels has {unknowns(candidate)} unknowns per output channel, "
                f"more than the {LARGEST_SYSTEM} that are solved in reasonable time"
            )
            refused.append(Refusal(candidate.span.entry, candidate.span.exit, reason))
        else:
            kept.append(candidate)
    return kept, refused


def _require_room(budget: Budget, original_ms: float, candidates: Sequence[Candidate], spans: Sequence[Span]) -> None:
    if budget.target_ms(original_ms) >= original_ms:
        raise BudgetError(f"budget {budget} is met by the original already, measured at {original_ms:.3f} ms")
    if not candidates:
        reason = next((span.refusal for span in spans if span.refusal), "no rewrite of a span is faster than the span")
        raise BudgetInfeasibleError(
            f"nothing in this network can be made faster, so {original_ms:.3f} ms is the best; for example: {reason}",
            best_ms=original_ms,
        )


def _copy_fits(source: fx.GraphModule, target: fx.GraphModule, plan: Plan) -> None:
    pairs = zip(placed_convolutions(source, plan), placed_convolutions(target, plan), strict=True)
    for fitted, place in pairs:
        place.load(fitted.operator)


def _frontier_points(search: Search) -> Iterator[FrontierPoint]:
    for option in map(search.option, range(len(search.frontier))):
        yield FrontierPoint(search.timer.predict(option.sum_ms), option.importance, option.plan)


def _record(candidate: Candidate, pricing: Pricing, table: LatencyTable, loss: float) -> SpanRecord:
    kept_ms = pricing.kept_ms(candidate.span.nodes, table.ms)
    saving_ms = pricing.saving_ms(candidate, table.ms)
    return SpanRecord(candidate.choice, pricing.convolutions(candidate.span), kept_ms, kept_ms - saving_ms, loss)


def _refusals(spans: Iterable[Span]) -> Iterator[Refusal]:
    return (Refusal(s.entry, s.exit, s.refusal) for s in spans if s.refusal and s.exit != "output")


def _announce(*notes: str) -> tuple[str, ...]:
    spoken = tuple(note for note in notes if note)
    for note in spoken:
        warnings.warn(note, stacklevel=3)
    return spoken
