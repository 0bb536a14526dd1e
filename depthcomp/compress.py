"""The call that does it all: capture, compress within the budget, save, fine-tune; resumed where it was killed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from depthcomp.budget import Budget
from depthcomp.data.batches import Data
from depthcomp.errors import DepthCompError, TrainingError
from depthcomp.importance.scoring import Importance, most_images, parse_importance
from depthcomp.importance.table import ImportanceTable
from depthcomp.methods import find_method
from depthcomp.pipeline import Pipeline
from depthcomp.preparation import measurable, prepare
from depthcomp.progress import Progress, Stages
from depthcomp.results.result import CompressionResult
from depthcomp.saved_compression import SavedCompression, settings_hash
from depthcomp.table_store import TableStore
from depthcomp.timing import NetworkTimer
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import rehearse
from depthcomp.tuned_result import CHECKPOINTS, completed, require_tunable, trained
from depthcomp_files import require_writable_folder as require_writable
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
            "layermerge" or "depthshrinker", which fit nothing, so train what they return, "uniform" or "random".
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
    wanted, chosen = Budget.parse(budget), find_method(method)
    _require_supported(precision, seed)
    scoring = parse_importance(importance)
    if not chosen.scored:
        scoring = ImportanceTable({})
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
    for note in prepared.notes:
        warnings.warn(note, stacklevel=2)
    saved = None
    if folder is not None:
        settings = settings_hash(prepared, wanted, chosen.name, scoring, seed, store.environment)
        saved = SavedCompression(folder, settings)
    timer = NetworkTimer(prepared.original, (prepared.example,), runtime, seed=seed, progress=stages.report)

    result = None if saved is None or finetune is None else saved.unfinished(prepared)
    if result is None:
        pipeline = Pipeline(
            chosen, wanted, prepared, store, runtime, timer, scoring,
            refit_kept=data is not None, folder=folder, seed=seed, stages=stages,
        )  # fmt: skip
        result, scored = pipeline.run()
        if saved is not None:
            with stages("saving"):
                result = saved.save(result, to_be_tuned=finetune is not None)
                store.forget_journal()  # all of it stands in latency_table.json now
                scored.journal.forget()  # and in importance.json
    if finetune is None:
        return result
    stages, checkpoints = Stages(progress, dict(result.seconds)), None if folder is None else folder / CHECKPOINTS
    try:
        result = trained(
            result, prepared.network, data, val_data, finetune, stages,
            checkpoints=checkpoints, calibration=prepared.calibration.batches, anew=True,
        )  # fmt: skip
        return completed(result, timer, stages, checkpoints=checkpoints, out=folder)
    except Exception as error:  # whatever it was, nothing is lost
        raise _with_result(
            TrainingError(str(error) or type(error).__name__, result=result), tuned=result.finetuned is not None
        ) from error


def _with_result(error: TrainingError, *, tuned: bool) -> TrainingError:
    """Return an error with a note on its result; not in the message, as on a command line there is none."""
    what = "what was fine-tuned, with the latencies from before," if tuned else "what was compressed"
    error.add_note(f"{what} is the `result` of this error")
    return error


def _require_supported(precision: str, seed: int) -> None:
    if precision != "fp32":
        raise DepthCompError(f"precision (={precision!r}) must be 'fp32', in which operators are timed")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise DepthCompError(f"seed (={seed!r}) must be a whole number, 0 or more")
