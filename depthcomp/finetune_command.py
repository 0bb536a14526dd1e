"""What `depthcomp finetune` does: a folder of results in, the same network with weights trained on out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
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

CALIBRATION_BATCHES = 8  # whose tensors tell the statistics that norms begin with


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
                calibration=_calibration(train if val is None else val),
                folder=directory / CHECKPOINTS, progress=progress,
            )  # fmt: skip
        return outcome.record, _written(request, outcome, plan, example)
