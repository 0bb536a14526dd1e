"""What `depthcomp finetune` does: a folder of results in, the same network with weights trained on out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from depthcomp.artifacts import ORIGINAL, TRAINABLE, load, load_network, save_network
from depthcomp.console import Progress
from depthcomp.data_specs import load_data
from depthcomp.errors import ArtifactError, DepthCompError
from depthcomp.export import export_onnx
from depthcomp.export_command import saved_inputs
from depthcomp.files import write_atomically
from depthcomp.finetune import FinetunedPlan, FinetuneRecord, finetune_plan
from depthcomp.models import load_model
from depthcomp.training.config import FinetuneConfig
from depthcomp.tuned_result import CHECKPOINTS
from fx_passes import Plan
from fx_passes.shapes import propagate_shapes

__all__ = ["TuningRequest", "configured", "run", "told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRequest:
    """What is to be fine-tuned, on what, and how.

    Attributes:
        directory: the folder of results.
        data: what to train on, as `depthcomp.data_specs` reads it.
        val_data: what to validate on; None: a part of `data`.
        config: how to train.
        teacher: a model by name, as for `depthcomp compress`; None: the original in the folder.
        teacher_weights: the weights of that model.
        workers: processes that load images.
        data_root: where torchvision keeps its data sets.
        download: whether torchvision may download.
        augment: whether images are cropped and mirrored at random.
        out: where the network is written; None: into the folder itself.
    """

    directory: Path
    data: str
    val_data: str | None
    config: FinetuneConfig
    teacher: str | None = None
    teacher_weights: Path | None = None
    workers: int = 0
    data_root: Path | None = None
    download: bool = False
    augment: bool = True
    out: Path | None = None


def configured(file: Path | None, **given: Any) -> FinetuneConfig:
    """Return the configuration in a file, or the default one, with what is given (not None) in its place.

    Raises:
        DepthCompError: the file cannot be read, or holds no configuration.
    """
    config = FinetuneConfig()
    if file is not None:
        try:
            config = FinetuneConfig.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise DepthCompError(f"cannot read the configuration {file}: {error.strerror}; check the path") from error
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def run(request: TuningRequest) -> tuple[FinetuneRecord, list[Path]]:
    """Fine-tune, write the network, and return the numbers and the files; a run that was interrupted goes on.

    Raises:
        ArtifactError: the folder holds no result with its trainable form, or cannot be written to.
        DataError: the data cannot be read or do not fit.
        TrainingError: fine-tuning cannot go on; the message says where the last checkpoint is.
    """
    directory = request.directory
    load(directory)  # a folder that holds no network is refused with the right words
    example = saved_inputs(directory)
    plan = Plan.from_json((directory / "plan.json").read_text(encoding="utf-8"))
    trainable = _trainable(directory, example)
    with redirect_stdout(sys.stderr):  # stdout carries the result alone
        teacher = _teacher(request)
        train, val = _data(request, request.data, trainable, example[0]), None
        if request.val_data is not None:
            val = _data(request, request.val_data, trainable, example[0], judging=True)
        with Progress() as progress:
            outcome = finetune_plan(
                trainable, plan, teacher, train, val, request.config,
                folder=directory / CHECKPOINTS, progress=progress,
            )  # fmt: skip
        return outcome.record, _written(request, outcome, plan, example)


def told(record: FinetuneRecord) -> list[str]:
    """Return lines that say what fine-tuning came to."""
    lines = [f"loss {record.loss_before:.4g} -> {record.loss_after:.4g} on the validation data"]
    if record.metric != "loss":
        lines.append(f"{record.metric} {record.metric_before:.4g} -> {record.metric_after:.4g}")
    return [*lines, f"best: {record.best}, of {record.epochs} epochs in {record.seconds:.0f} s"]


def _trainable(directory: Path, example: tuple[Tensor, ...]) -> fx.GraphModule:
    folder = directory / TRAINABLE
    if not folder.is_dir():
        raise ArtifactError(f"{directory} has no folder {TRAINABLE}, from an older depthcomp; compress the model anew")
    trainable = load_network(folder)
    propagate_shapes(trainable, example)
    return trainable


def _teacher(request: TuningRequest) -> nn.Module | None:
    if request.teacher is not None:
        return load_model(request.teacher, request.teacher_weights)[0]
    folder = request.directory / ORIGINAL
    if not request.config.distillation and not request.config.features:
        return None
    if not folder.is_dir():
        raise ArtifactError(
            f"{request.directory} has no folder {ORIGINAL} with the network to learn from; name it with --teacher and "
            "--teacher-weights"
        )
    return load_network(folder)


def _data(
    request: TuningRequest, spec: str, network: nn.Module, example: Tensor, *, judging: bool = False
) -> Iterable[Any]:
    return load_data(
        spec, network, example,
        training=request.augment and not judging, batch_size=request.config.batch_size, workers=request.workers,
        root=request.data_root, download=request.download, seed=request.config.seed,
    )  # fmt: skip


def _written(request: TuningRequest, outcome: FinetunedPlan, plan: Plan, example: tuple[Tensor, ...]) -> list[Path]:
    """Write the network and the numbers, each file whole, and return the files; of several processes the first does."""
    if int(os.environ.get("RANK", "0")) > 0:
        return []
    folder = save_network(outcome.model, request.out or request.directory, example)
    export_onnx(outcome.model, example, folder / "model.onnx")
    write_atomically(folder / "plan.json", plan.to_json().encode())
    content = json.loads((request.directory / "result.json").read_bytes()) | {"finetuned": asdict(outcome.record)}
    write_atomically(folder / "result.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return [folder / name for name in ("model.json", "model.safetensors", "model.onnx", "plan.json", "result.json")]
