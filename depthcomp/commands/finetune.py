"""Command `depthcomp finetune`: trains the network in a folder of results."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from depthcomp.commands.data_specs import load_data, names_function, pretrained_cfg
from depthcomp.commands.models import load_model
from depthcomp.data.inputs import Inputs
from depthcomp.data.saved_arrays import is_array_file
from depthcomp.errors import ArtifactError, BackendUnavailableError, DataError, DepthCompError
from depthcomp.latency.timing import NetworkTimer
from depthcomp.progress import Progress, Stages
from depthcomp.results.loading import load_result
from depthcomp.results.result import CompressionResult
from depthcomp.results.saving import ORIGINAL
from depthcomp.runs.tuned_result import CHECKPOINTS, is_first_process, tuned
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.sources import set_apart
from fx_passes.graph_edit import attach_attributes
from latency_tables import AnyBackend, Environment
from latency_tables.backends import BACKEND_NAMES, create_backend
from latency_tables.tables.environment import require_same_environment

__all__ = ["TuningRequest", "configured", "run", "statistics"]

_AS_BEFORE = "the latencies were measured before fine-tuning and not again"  # saved results are matched by it


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRequest:
    """Request of a fine-tuning.

    Attributes:
        directory: the folder of results.
        data: the data to train on, as `depthcomp.commands.data_specs` reads it.
        val_data: the data to validate on; None for a part of `data`.
        config: settings of the training.
        teacher: a model by name, as for `depthcomp compress`; None for the original in the folder.
        teacher_weights: the weights of that model.
        data_root: folder of torchvision's data sets.
        download: whether torchvision may download.
        augment: whether images are cropped and mirrored at random.
        statistics: mean and std by channel to normalise images with; empty to take them from the folder.
        out: folder to write to; None for `directory`.
    """

    directory: Path
    data: str
    val_data: str | None
    config: FinetuneConfig
    teacher: str | None = None
    teacher_weights: Path | None = None
    data_root: Path | None = None
    download: bool = False
    augment: bool = True
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    out: Path | None = None


def configured(file: Path | None, **given: Any) -> FinetuneConfig:
    """Return the configuration in a file, or the default one, with the given values that are not None.

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


def statistics(mean: str, std: str) -> dict[str, tuple[float, ...]]:
    """Return mean and std by channel from texts of numbers with commas between them; nothing for two empty texts.

    Raises:
        DataError: one is missing, or is not a number for each channel.
    """
    if not mean and not std:
        return {}
    try:
        means, stds = (tuple(float(number) for number in text.split(",")) for text in (mean, std))
    except ValueError:
        means, stds = (), ()
    if len(means) != len(stds) or not means or min(stds) <= 0:
        raise DataError(
            f"--mean (={mean!r}) and --std (={std!r}) must both be a number for each channel, for example "
            "0.485,0.456,0.406, and each std above 0"
        )
    return {"mean": means, "std": stds}


def run(request: TuningRequest, progress: Progress | None = None) -> CompressionResult | None:
    """Fine-tune the network in a folder, measure it again, save the new result, and return it.

    An interrupted run resumes; after a finished one, the next starts from the tuned network. Where several processes
    train together, the first one writes, and the others return None.

    Args:
        request: the request.
        progress: called as (stage, done, total).

    Raises:
        ArtifactError: the folder holds no result with its trainable form, or cannot be written.
        DataError: the data cannot be read or do not fit.
        TrainingError: fine-tuning cannot continue; the message names the last checkpoint.
        TableError: the backend refuses the networks.

    Warns:
        UserWarning: the latencies cannot be measured again, so the old ones stay.
    """
    result = load_result(request.directory)
    if request.statistics:
        known = pretrained_cfg(result.trainable)
        attach_attributes(result.trainable, {"pretrained_cfg": {**known, **request.statistics}})
    stages = Stages(progress if is_first_process() else None, result.seconds)
    teacher = _teacher(request, result.original)
    train, val = _train_and_val(request, result)
    result, timer = _ready_to_measure(result, stages.report)
    found = tuned(
        result, teacher, train, val, request.config, timer, stages,
        checkpoints=request.directory / CHECKPOINTS, out=request.out or request.directory,
    )  # fmt: skip
    return found if is_first_process() else None


def _ready_to_measure(result: CompressionResult, progress: Progress) -> tuple[CompressionResult, NetworkTimer | None]:
    """Return the result and a timer in the environment where it was measured.

    Where that is not possible, the result gets a warning, and the timer is None.
    """
    result = replace(result, warnings=tuple(note for note in result.warnings if not note.startswith(_AS_BEFORE)))
    try:
        backend = _same_backend(result.environment)
        if result.original is None:
            raise ArtifactError(f"the folder has no {ORIGINAL} to compare the network with")
    except DepthCompError as reason:
        note = f"{_AS_BEFORE}: {reason}"
        if is_first_process():
            warnings.warn(note, stacklevel=3)
        return replace(result, warnings=(*result.warnings, note)), None
    timer = NetworkTimer(result.original, result.example_inputs, backend, seed=result.seed, progress=progress)
    return replace(result, environment=backend.environment()), timer


def _same_backend(environment: Environment) -> AnyBackend:
    """Return the backend that an environment names, if this machine has that environment.

    Raises:
        BackendUnavailableError: the backend is not one of depthcomp, or its device is missing.
        MissingPackageError: its library is not installed.
        TableMismatchError: version, device, threads or precision differ.
    """
    if environment.backend not in BACKEND_NAMES:
        raise BackendUnavailableError(f"the backend {environment.backend!r} is not one of depthcomp")
    backend = create_backend(environment.backend, threads=environment.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # another Python or system does not matter: all is measured anew
        require_same_environment(
            environment, backend.environment(), what="the network", remedy="`depthcomp bench` measures it here"
        )
    return backend


def _teacher(request: TuningRequest, original: nn.Module | None) -> nn.Module | None:
    if request.teacher is not None:
        return load_model(request.teacher, request.teacher_weights)[0]
    if not request.config.distillation and not request.config.features:
        return None
    if original is None:
        raise ArtifactError(
            f"{request.directory} has no folder {ORIGINAL} with the network to learn from; give --teacher and "
            "--teacher-weights"
        )
    return original


def _train_and_val(request: TuningRequest, result: CompressionResult) -> tuple[Iterable[Any], Iterable[Any] | None]:
    """Return the data to train and to validate on; random crops are for training only."""
    train = _data(request, request.data, result)
    if request.val_data is not None:
        return train, _data(request, request.val_data, result, judging=True)
    if not request.augment or names_function(request.data) or is_array_file(request.data):
        return train, None
    plain = _data(request, request.data, result, judging=True)
    return set_apart(train, request.config, plain=plain)


def _data(request: TuningRequest, spec: str, result: CompressionResult, *, judging: bool = False) -> Iterable[Any]:
    return load_data(
        spec, result.trainable, Inputs.of(result.example_inputs),
        training=request.augment and not judging, batch_size=request.config.batch_size, workers=request.config.workers,
        root=request.data_root, download=request.download, seed=request.config.seed,
    )  # fmt: skip
