"""Fine-tuning of a network from a teacher, from labels, or by a user's loss."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depthcomp.data.input_names import InputNames
from depthcomp.data.label_check import foreign_labels
from depthcomp.data.randomness import own_randomness
from depthcomp.errors import TrainingError
from depthcomp.progress import Progress, silent
from depthcomp.training.batches import Source
from depthcomp.training.checkpoint import optimizer_state
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.feature_outputs import last_layer, with_feature_outputs
from depthcomp.training.objective import Objective
from depthcomp.training.processes import Processes, joined_processes
from depthcomp.training.recipe import Recipe, require_timm
from depthcomp.training.sources import sources
from depthcomp.training.trainer import Trainer, Training

__all__ = ["FinetuneRecord", "Finetuned", "finetune", "rehearse"]

LABELLED_BATCHES = 8  # for the check that labels use the teacher's numbering


@dataclass(frozen=True, slots=True)
class FinetuneRecord:
    """Numbers of a fine-tuning; losses and metrics are means over the validation images.

    Attributes:
        best: the returned network: "untrained", "epoch 3", or "epoch 3, averaged" for the moving average.
        metric: the metric that chose it: "accuracy", "loss" (negative), or the name of the user's function.
        loss_before: loss of the untrained network.
        loss_after: loss of the returned network.
        metric_before: metric of the untrained network.
        metric_after: metric of the returned network.
        epochs: passes over the data.
        updates: updates of the weights.
        seconds: wall time; interrupted runs count up to their last checkpoint.
        history: for each epoch its number, losses, metrics, learning rate and the seconds until its end.
    """

    best: str
    metric: str
    loss_before: float
    loss_after: float
    metric_before: float
    metric_after: float
    epochs: int
    updates: int
    seconds: float
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A fine-tuned network.

    Attributes:
        network: the best network by validation, possibly the untrained one, in evaluation mode on the CPU.
        record: the numbers.
    """

    network: nn.Module
    record: FinetuneRecord


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    config: FinetuneConfig | None = None,
    *,
    features: Sequence[str] = (),
    folder: str | os.PathLike[str] | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a copy of `student` and return it; `student` and `teacher` are not changed.

    Processes started by torchrun share each batch. All of them return an equal network, and the first one writes. On
    CPUs, norms then normalise by the images of their own process, and their statistics are averaged.

    Args:
        student: any network.
        teacher: the network whose outputs the student learns; None for none.
        train: a DataLoader, a Dataset, a tensor of images or another iterable of batches that can be read every epoch;
            batches are x, (x, labels) or dicts.
        val: data to validate on, in any of these forms; None for a part of `train`.
        config: settings of the training.
        features: names of nodes that student and teacher have, which must then be captured graphs; their tensors are
            compared where `FinetuneConfig.features` is above 0.
        folder: folder for checkpoint.json, files of tensors and log.jsonl. An interrupted training resumes from there,
            with equal bits where it runs in one process on a CPU. A finished one does not run again, and a warning says
            so.
        anew: whether to replace, with a warning, an unfinished training of another network, teacher, data or
            configuration in the folder; otherwise that is an error. A finished one is always replaced.
        progress: called as (stage, done, total).

    Raises:
        DataError: the data are empty, cannot be read twice, do not fit the network, or change between epochs.
        TrainingError: the loss is not finite, there is nothing to train by, or the device cannot be used.
        MissingPackageError: timm is not installed, or tensorboard where the config asks for it.
        ArtifactError: the folder cannot be written, or holds the checkpoint of another training.

    Example:
        >>> tuned = finetune(student, teacher, loader, config=FinetuneConfig(epochs=3))  # doctest: +SKIP
        >>> tuned.record.loss_before, tuned.record.loss_after                            # doctest: +SKIP
    """
    config = config or FinetuneConfig()
    require_timm()
    with joined_processes(config.device) as processes, own_randomness(processes.device):
        batches, judging = sources(
            train, val, config, processes, normed=_has_norms(student), names=InputNames.of(student)
        )
        compared = bool(config.features) and teacher is not None and config.loss is None
        pair = [
            with_feature_outputs(network, features) if compared and network else copy.deepcopy(network)
            for network in (student, teacher)
        ]
        trained, frozen = pair
        assert trained is not None  # there is a student
        if frozen is not None:
            memory = torch.channels_last if config.channels_last else torch.contiguous_format
            frozen.eval().requires_grad_(False).to(processes.device).to(memory_format=memory)
            if config.labels and config.distillation and config.loss is None:
                config = _with_known_labels(config, frozen, batches, processes, returns_features=compared)
        training = Trainer(
            trained, Objective(config, frozen, returns_features=compared), batches, judging, config, processes,
            None if folder is None else Path(folder), progress or silent, anew=anew,
        ).run()  # fmt: skip
    network = copy.deepcopy(student)
    if training.best is not None:
        network.load_state_dict(training.best)
    return Finetuned(network.eval().cpu(), _record(training))


def rehearse(network: nn.Module, train: Any, val: Any, config: FinetuneConfig | None = None) -> None:
    """Validate and update a copy of a network once, with itself as teacher, so that faults show early.

    Raises:
        DataError: the data are empty, cannot be read twice, or do not fit the network.
        TrainingError: as for `finetune`.
        ArtifactError: checkpoints cannot hold the optimiser's state.
    """
    config = config or FinetuneConfig()
    with joined_processes(config.device) as processes, own_randomness(processes.device):
        compared = bool(config.features) and config.loss is None
        names = [last_layer(network)] if compared else []  # one node stands for the ends of spans
        whole = with_feature_outputs(network, names) if compared else network
        teacher, student = (copy.deepcopy(whole).eval().to(processes.device) for _ in range(2))
        objective = Objective(config, teacher, returns_features=compared)
        recipe = Recipe(student, config, 1, processes)
        weights = next(student.parameters())
        normed = config.fit_norms or _has_norms(network)
        training, judging = (
            source.first(1)[0].to(weights, torch.contiguous_format)
            for source in sources(train, val, config, processes, normed=normed, names=InputNames.of(network))
        )
        with torch.no_grad():
            objective.judge(student, [judging], objective.metric_name(judging), processes)
        recipe.train_mode()
        with recipe.autocast():
            loss = objective.loss(recipe.wrapped, training)
        if not loss.isfinite():
            raise TrainingError(
                f"the loss on the first batch is {loss.item()} before any training; correct the data, the network or "
                "the function first"
            )
        torch.autograd.backward(recipe.scaler.scale(loss))
        recipe.step(1)
        optimizer_state(recipe.optimizer)  # which checkpoints must hold


@torch.no_grad()
def _with_known_labels(
    config: FinetuneConfig, teacher: nn.Module, train: Source, processes: Processes, *, returns_features: bool
) -> FinetuneConfig:
    """Return the configuration, without labels where the teacher hardly ever predicts those of the first images."""
    weights = next(teacher.parameters(), torch.empty(0, device=processes.device))
    batches = [batch.to(weights, torch.contiguous_format) for batch in train.first(LABELLED_BATCHES)]
    if any(batch.labels is None or batch.labels.ndim != 1 or batch.labels.is_floating_point() for batch in batches):
        return config
    objective = Objective(config, teacher, returns_features=returns_features)
    accuracy = objective.judge(teacher, batches, "accuracy", processes).metric
    if math.isnan(accuracy):
        return config  # none of them has a label that counts
    outputs = batches[0].images.through(teacher)
    note = foreign_labels(accuracy, (outputs[0] if returns_features else outputs).shape[1])
    if not note:
        return config
    if processes.writes:
        warnings.warn(note, stacklevel=3)
    return replace(config, labels=0.0, metric="loss" if config.metric == "accuracy" else config.metric)


def _has_norms(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _record(training: Training) -> FinetuneRecord:
    found = training.checkpoint
    return FinetuneRecord(
        best=found.best.what,
        metric=found.metric,
        loss_before=found.before.loss,
        loss_after=found.best.loss,
        metric_before=found.before.metric,
        metric_after=found.best.metric,
        epochs=found.epoch,
        updates=found.update,
        seconds=found.seconds,
        history=tuple(found.history),
    )
