"""Compression from one call: capture, compress within the budget, save, fine-tune; a killed run resumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from depthcomp.budget import Budget
from depthcomp.data.batches import Data
from depthcomp.data.output_loss import OutputKind, OwnLoss
from depthcomp.errors import ArtifactError, DepthCompError, TrainingError
from depthcomp.importance.default import DEFAULT_IMPORTANCE
from depthcomp.importance.scoring import ImportanceLike
from depthcomp.latency.table_store import TableStore
from depthcomp.latency.timing import NetworkTimer
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, Stages
from depthcomp.results.result import CompressionResult
from depthcomp.results.stored_network import require_storable
from depthcomp.runs.part_task import PartTask
from depthcomp.runs.pipeline import Pipeline
from depthcomp.runs.resume import SavedCompression, settings_hash
from depthcomp.runs.task import CompressionTask
from depthcomp.runs.tuned_result import CHECKPOINTS, completed, require_tunable, trained
from depthcomp.sources.module_names import Modules
from depthcomp.sources.onnx_file import read_onnx
from depthcomp.sources.part_of_whole import PartOfWhole
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import rehearse
from depthcomp.warning import warn_caller
from depthcomp_files import require_writable_folder
from latency_tables import AnyBackend, LatencyTable, as_backend

__all__ = ["NOT_SAVED", "compress_depth"]

NOT_SAVED = "the result could not be saved"


def compress_depth(
    model: nn.Module | str | os.PathLike[str],
    budget: str | Budget,
    *,
    module: str | None = None,
    exclude: Modules = (),
    example_inputs: Any = None,
    data: Data | None = None,
    val_data: Data | None = None,
    inputs: Sequence[str] | None = None,
    backend: str | AnyBackend = "auto",
    table: LatencyTable | str | os.PathLike[str] | None = None,
    precision: str = "fp32",
    method: str = "depthcomp",
    kinds: Sequence[str] | None = None,
    importance: ImportanceLike = DEFAULT_IMPORTANCE,
    outputs: OutputKind | None = None,
    loss: OwnLoss | None = None,
    finetune: FinetuneConfig | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressionResult:
    """Return a shallower network that meets a latency budget when measured; `model` is not changed.

    Args:
        model: a trained CNN that takes one batch of images, signals, volumes or vectors, or the path of an ONNX file
            (with onnx2torch installed).
        budget: "70%" of the measured original, "1.8ms", "1.4x", or a `Budget`.
        module: path of a part of the model, such as "backbone", to compress in place of the whole: captured from what
            the whole feeds it, and put back into a copy of the whole, `result.whole`. `example_inputs` and `data` are
            then what the whole takes, lists of images too. Budget and latencies are those of the part; `result.part`
            has the whole's. The outputs of the whole judge plans where it can be captured and takes one batch of
            images, else those of the part, as `result.judged_by` tells. Fine-tuning teaches the part its own outputs.
        exclude: names of modules of the model that stay as they are, or patterns, such as ("head", "layer4.*"). No
            choice changes or refits them or the channels that they read and make, and fine-tuning does not train them.
            Norms among them are not folded into convolutions; most runtimes fold them when they load the network.
        example_inputs: a batch of images (n, c, h, w) or signals (n, c, length), or whatever else the model takes;
            latency is measured at this shape. None takes it from the data, or else from the model's own configuration.
            Several inputs are a tuple in the order of the forward's arguments, or a dict of these.
        data: calibration images, normalised as for training: a DataLoader, a Dataset or an iterable of x, (x, y)
            or dicts; integer classes y are used. A folder, paths, PIL images, NumPy arrays and bytes are read and
            normalised as the model's `pretrained_cfg` says; a .npy or .pt file of arrays and arrays of signals are
            taken as they are. At most 512 images are read, more if small; see
            `CalibratedImportance`. None takes synthetic images with the spectrum of natural ones, and warns.
            Items with several inputs are (x1, x2), (x1, x2, y), ((x1, x2), y) or dicts by the forward's arguments.
        val_data: other images to estimate the loss on; nothing is fitted to them. None judges on each third of `data`
            in turn, with fits on the other two.
        inputs: names of the forward's arguments that example and data give, such as ("image", "mask"), in the forward's
            order; all others keep their defaults. None takes those of a dict in `example_inputs`, as many as a tuple
            has, or else all that have no default. Not with `module`.
        backend: one of `latency_tables.backends.BACKEND_NAMES`, for example "onnxruntime", "openvino", "torch" or
            "torch_compile"; "auto"; or an instance like `create_backend("onnxruntime", threads=4)`.
        table: a latency table of this machine, or its path. Missing entries are measured and, given a path, added to
            the file, with the line from sums of entries to the whole networks that are measured.
        precision: "fp32".
        method: the method that chooses the plan, one of `depthcomp.methods.registry.METHODS`: "depthcomp", or for
            comparison "depth", "width", "grail", "uniform", "random", "kim23", "layermerge" or "depthshrinker". The
            last three fit nothing, so train their results.
        kinds: kinds of choices that the method may make, some of "drop", "fit", "merge" and "narrow"; None for the
            method's own.
        importance: how the losses of choices are found, for any method. "curvature" and "calibrated" use closed-form
            fits without training. "curvature" estimates the losses of most fits, leaves out the choices that cannot
            enter the latency-loss frontier, and verifies those on it. "calibrated" computes the losses of all.
            "kim23" and "layermerge" train each choice for a short while. Else settings like
            `FinetunedImportance(steps=100)`, or the path of an importance.json from an earlier run's `output_dir`.
        outputs: "scores" if the network returns class scores (n, classes), which are compared by their divergence;
            "values" for other outputs, which are compared by squared errors, each channel relative to its variance.
            None tells them by their shape; real labels in the data that are no shares of classes mean values.
        loss: a function (original_outputs, outputs, batch) -> number to judge plans by instead; lower is better. A
            batch is images, or (images, labels) where `data` holds integer classes. Choices are screened by `outputs`.
        finetune: settings to fine-tune the result, with the original as teacher, on all of `data` and its labels.
            `val_data`, or else a part of `data`, decides which network is kept. None does not fine-tune.
        output_dir: folder for all results. A run killed while it measures, scores or fine-tunes resumes from there,
            given equal arguments and data in equal order. Measurements of other environments stay there, too.
        seed: seed of everything random.
        progress: called as (stage, done, total).

    Raises:
        BudgetError: the budget is malformed, or the original already meets it.
        BudgetInfeasibleError: no plan meets the budget, or none is faster than the original, measured side by side;
            `best_ms` is the measured latency of the fastest.
        CaptureError: the model or its example inputs are unusable, or `module` or `exclude` names no part of it.
        DataError: the data are empty, do not fit the model, or cannot be read twice to fine-tune.
        DepthCompError: `method`, `kinds`, `importance`, `outputs` or `precision` is unknown, `seed` is out of range,
            `loss` is no function, or fails, or `inputs` is given with `module`.
        BackendUnavailableError: `backend` is unknown, or not a backend.
        MissingPackageError: the backend's library is not installed.
        TableMismatchError: the table was measured in another environment.
        TableError: the table or the journal in `output_dir` cannot be read or written, the backend refuses the
            network or an operator, or the table records that an operator of the network could not be measured.
        ArtifactError: `output_dir` cannot be written, the network holds an operator that cannot be stored there, or it
            cannot be exported to ONNX.
        TrainingError: fine-tuning cannot continue, or its outcome cannot be measured or saved. The error's `result`
            holds the compressed or fine-tuned result so far.

    Warns:
        UserWarning: something about the data, the choices or the saving limits the result; see `result.warnings`. A
            compressed result that cannot be saved in the end is returned all the same.

    Example:
        >>> result = compress_depth(model, "75%", data=loader)             # doctest: +SKIP
        >>> result.original_ms, result.predicted_ms, result.measured_ms    # doctest: +SKIP
    """
    wanted = Budget.parse(budget)
    if isinstance(model, str | os.PathLike):
        model, example_inputs = read_onnx(model, example_inputs)
    if module is not None and inputs is not None:
        raise DepthCompError(f"inputs (={inputs!r}) names arguments of the whole model; leave it out beside module")
    task = CompressionTask.of(
        model, method, importance,
        kinds=kinds, example_inputs=example_inputs, data=data, val_data=val_data, seed=seed, outputs=outputs, loss=loss,
        inputs=inputs, exclude=exclude,
    )  # fmt: skip
    _require_supported(precision)
    part = None if module is None else PartTask.of(task, PartOfWhole(model, module))
    task = task if part is None else part.task
    require_tunable(finetune, task.data, task.val_data)
    if finetune is not None and finetune.outputs is None:
        finetune = replace(finetune, outputs=outputs)
    runtime = as_backend(backend)
    folder = None if output_dir is None else require_writable_folder(output_dir)
    store, stages = TableStore.open(table, runtime.environment(), folder), Stages(progress)
    with stages("capturing"):
        task = task.with_readable_data()
        prepared = _with_storing_fault(task.prepared(store.failures), folder)
        tuning = task if part is None or finetune is None else part.for_tuning(task)
        if finetune is not None:
            rehearse(prepared.measured(prepared.captured.gm), tuning.data, tuning.val_data, finetune)
    if part is not None:
        prepared = part.told(prepared)
    for note in prepared.notes:
        warn_caller(note)
    timer = NetworkTimer(prepared.original, prepared.example.tensors, runtime, seed=seed, progress=stages.report)
    pipeline = Pipeline(task, wanted, prepared, store, runtime, timer, folder, stages)
    result = _compressed(pipeline, part, to_be_tuned=finetune is not None)
    if finetune is not None:
        result = _tuned(result, pipeline, tuning, finetune, Stages(progress, dict(result.seconds)))
    return result if part is None else replace(result, whole=part.part.put_back(result.model))


def _with_storing_fault(prepared: Prepared, folder: Path | None) -> Prepared:
    """Return the prepared network, with a note where what is made of it cannot be saved.

    Raises:
        ArtifactError: it cannot be saved, and a folder to save to is given.
    """
    try:
        require_storable(prepared.measured(prepared.captured.gm))
    except ArtifactError as error:
        if folder is not None:
            raise ArtifactError(f"{error}; or leave out output_dir, and export the result to ONNX") from error
        return replace(prepared, notes=(*prepared.notes, f"the result can be exported, but not saved: {error}"))
    return prepared


def _compressed(pipeline: Pipeline, part: PartTask | None, *, to_be_tuned: bool) -> CompressionResult:
    """Return and save the pipeline's result, or return the one of a run that was killed while it fine-tuned."""
    if pipeline.folder is None:
        return _with_whole(pipeline.run()[0], pipeline, part)
    task = pipeline.task
    settings = settings_hash(
        pipeline.prepared, pipeline.budget, task.method, task.importance, task.seed, pipeline.store.environment
    )
    saved = SavedCompression(pipeline.folder, settings)
    unfinished = saved.unfinished(pipeline.prepared) if to_be_tuned else None
    if unfinished is not None:
        return unfinished
    result, scored = pipeline.run()
    result = _with_whole(result, pipeline, part)
    try:
        with pipeline.stages("saving"):
            result = saved.save(result, to_be_tuned=to_be_tuned)
            pipeline.store.forget_journal()  # its entries are in latency_table.json now
            scored.journal.forget()  # its scores are in importance.json now
    except ArtifactError as error:  # minutes of work are in the result
        note = f"{NOT_SAVED}, and is returned: {error}"
        warn_caller(note)
        result = replace(result, warnings=(*result.warnings, note))
    return result


def _with_whole(result: CompressionResult, pipeline: Pipeline, part: PartTask | None) -> CompressionResult:
    """Return the result of a part with the latencies of the whole; another result as it is."""
    if part is None:
        return result
    with pipeline.stages("measuring the whole"):
        record = part.record(part.part.put_back(result.model), pipeline.backend, pipeline.task.seed)
    return replace(result, part=record, seconds=dict(pipeline.stages.seconds))


def _tuned(
    result: CompressionResult, pipeline: Pipeline, task: CompressionTask, config: FinetuneConfig, stages: Stages
) -> CompressionResult:
    """Fine-tune a result on a task's data, measure it anew, save it and return it.

    Raises:
        TrainingError: any step fails; its `result` holds the compressed or fine-tuned result so far.
    """
    prepared, folder = pipeline.prepared, pipeline.folder
    batches = prepared.calibration.batches if prepared.part is None else None  # else they are the whole's images
    checkpoints = None if folder is None else folder / CHECKPOINTS
    try:
        result = trained(
            result, prepared.measured(prepared.teacher), task.data, task.val_data, config, stages,
            checkpoints=checkpoints, calibration=batches, anew=True,
        )  # fmt: skip
        return completed(result, pipeline.timer, stages, checkpoints=checkpoints, out=folder)
    except Exception as error:  # any error keeps the result so far
        raise _with_result(
            TrainingError(str(error) or type(error).__name__, result=result), tuned=result.finetuned is not None
        ) from error


def _with_result(error: TrainingError, *, tuned: bool) -> TrainingError:
    """Return an error with a note on its result; the message leaves it out, as the command line has no result."""
    what = "the fine-tuned network with its latencies from before" if tuned else "the compressed network"
    error.add_note(f"the `result` of this error is {what}")
    return error


def _require_supported(precision: str) -> None:
    if precision != "fp32":
        raise DepthCompError(f"precision (={precision!r}) must be 'fp32', the precision of the latency table")
