"""Compression from one call: capture, compress within the budget, save, fine-tune; a killed run resumes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from depthcomp.budget import Budget
from depthcomp.data.batches import Data
from depthcomp.errors import DepthCompError, TrainingError
from depthcomp.importance.scoring import ImportanceLike
from depthcomp.latency.table_store import TableStore
from depthcomp.latency.timing import NetworkTimer
from depthcomp.progress import Progress, Stages
from depthcomp.results.result import CompressionResult
from depthcomp.runs.pipeline import Pipeline
from depthcomp.runs.resume import SavedCompression, settings_hash
from depthcomp.runs.task import CompressionTask
from depthcomp.runs.tuned_result import CHECKPOINTS, completed, require_tunable, trained
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import rehearse
from depthcomp.warning import warn_caller
from depthcomp_files import require_writable_folder
from latency_tables import AnyBackend, LatencyTable, as_backend

__all__ = ["compress_depth"]


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
    importance: ImportanceLike = "calibrated",
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
        method: how the plan is chosen, one of `depthcomp.methods.registry.METHODS`: "depthcomp", or for comparison
            "kim23", "layermerge" or "depthshrinker", which fit nothing, so train what they return; "uniform"; "random".
        importance: what a choice costs in loss, whatever the method: "calibrated", by closed-form fits, no training;
            "kim23" or "layermerge", by a little training of each choice; settings, such as
            `FinetunedImportance(steps=100)`; or the path of an importance.json that an earlier run left in its
            `output_dir`.
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
        DepthCompError: `method` or `importance` is unknown, `precision` another one, or `seed` no such number.
        BackendUnavailableError: `backend` is unknown, or no backend.
        MissingPackageError: the backend's library is not installed.
        TableMismatchError: the table was measured in another environment.
        TableError: the table or the journal in `output_dir` cannot be read or written, the backend refuses the
            network or an operator, or the table says that one of the network's own could not be measured.
        ArtifactError: `output_dir` cannot be written, or the network cannot be exported to ONNX.
        TrainingError: fine-tuning cannot go on, or its outcome cannot be measured or saved. The error's `result` is
            what was compressed, or fine-tuned, by then.

    Example:
        >>> result = compress_depth(model, "75%", data=loader)             # doctest: +SKIP
        >>> result.original_ms, result.predicted_ms, result.measured_ms    # doctest: +SKIP
    """
    wanted = Budget.parse(budget)
    task = CompressionTask.of(
        model, method, importance, example_inputs=example_inputs, data=data, val_data=val_data, seed=seed
    )
    _require_supported(precision)
    require_tunable(finetune, data, val_data)
    runtime = as_backend(backend)
    folder = None if output_dir is None else require_writable_folder(output_dir)
    store, stages = TableStore.open(table, runtime.environment(), folder), Stages(progress)
    with stages("capturing"):
        prepared = task.prepared(store.failures)
        if finetune is not None:
            rehearse(prepared.captured.gm, data, val_data, finetune)
    for note in prepared.notes:
        warn_caller(note)
    timer = NetworkTimer(prepared.original, (prepared.example,), runtime, seed=seed, progress=stages.report)
    pipeline = Pipeline(task, wanted, prepared, store, runtime, timer, folder, stages)
    result = _compressed(pipeline, to_be_tuned=finetune is not None)
    return result if finetune is None else _tuned(result, pipeline, finetune, Stages(progress, dict(result.seconds)))


def _compressed(pipeline: Pipeline, *, to_be_tuned: bool) -> CompressionResult:
    """Return what the pipeline finds, or what a run that was killed while it fine-tuned had found; it is saved."""
    if pipeline.folder is None:
        return pipeline.run()[0]
    task = pipeline.task
    settings = settings_hash(
        pipeline.prepared, pipeline.budget, task.method.name, task.importance, task.seed, pipeline.store.environment
    )
    saved = SavedCompression(pipeline.folder, settings)
    unfinished = saved.unfinished(pipeline.prepared) if to_be_tuned else None
    if unfinished is not None:
        return unfinished
    result, scored = pipeline.run()
    with pipeline.stages("saving"):
        result = saved.save(result, to_be_tuned=to_be_tuned)
        pipeline.store.forget_journal()  # all of it stands in latency_table.json now
        scored.journal.forget()  # and in importance.json
    return result


def _tuned(result: CompressionResult, pipeline: Pipeline, config: FinetuneConfig, stages: Stages) -> CompressionResult:
    """Return a result fine-tuned, measured anew and saved.

    Raises:
        TrainingError: whatever breaks off; its `result` is what was compressed, or fine-tuned, by then.
    """
    task, prepared, folder = pipeline.task, pipeline.prepared, pipeline.folder
    checkpoints = None if folder is None else folder / CHECKPOINTS
    try:
        result = trained(
            result, prepared.network.gm, task.data, task.val_data, config, stages,
            checkpoints=checkpoints, calibration=prepared.calibration.batches, anew=True,
        )  # fmt: skip
        return completed(result, pipeline.timer, stages, checkpoints=checkpoints, out=folder)
    except Exception as error:  # whatever it was, nothing is lost
        raise _with_result(
            TrainingError(str(error) or type(error).__name__, result=result), tuned=result.finetuned is not None
        ) from error


def _with_result(error: TrainingError, *, tuned: bool) -> TrainingError:
    """Return an error with a note on its result; not in the message, as on a command line there is none."""
    what = "what was fine-tuned, with the latencies from before," if tuned else "what was compressed"
    error.add_note(f"{what} is the `result` of this error")
    return error


def _require_supported(precision: str) -> None:
    if precision != "fp32":
        raise DepthCompError(f"precision (={precision!r}) must be 'fp32', in which operators are timed")
