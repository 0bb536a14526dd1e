"""Fine-tuning a network: from a teacher, from labels, or by a loss of the user's own."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from depthcomp.errors import TrainingError
from depthcomp.progress import Progress, silent
from depthcomp.training.batches import own_randomness, sources
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.objective import Objective
from depthcomp.training.processes import Processes, joined_processes
from depthcomp.training.recipe import require_timm
from depthcomp.training.taps import tapped
from depthcomp.training.trainer import Trainer, Training
from fx_passes import Plan, fits_without_norm, insert_norms, merge

__all__ = [
    "FinetuneRecord",
    "Finetuned",
    "FinetunedPlan",
    "finetune",
    "finetune_plan",
    "rehearse",
    "with_norms_for_fits",
]

CALIBRATION_BATCHES = 8  # whose tensors tell the statistics that norms begin with, where none are given
TOLERANCE = 1e-3  # of the largest output, between the network that was trained and its merged form, in single precision


@dataclass(frozen=True, slots=True)
class FinetuneRecord:
    """What fine-tuning came to, in numbers; losses and metrics are means over the validation images.

    Attributes:
        best: which network is returned: "untrained", "epoch 3", or "epoch 3, averaged" for the moving average.
        metric: what decided: "accuracy", "loss" (its sign changed), or the name of the user's function.
        loss_before: loss of the untrained network.
        loss_after: loss of the network that is returned.
        metric_before: metric of the untrained network.
        metric_after: metric of the network that is returned.
        epochs: passes over the data.
        updates: of the weights.
        seconds: wall time, of interrupted runs up to their last checkpoint.
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
        network: the best one by validation, in evaluation mode on the CPU; the untrained one where none was better.
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
    """Return a copy of `student` with weights trained on; `student` and `teacher` are not changed.

    Started by torchrun, the processes share each batch; every one of them returns the same network, and the first
    writes. On CPUs norms then normalise by the images of their own process, and their statistics are averaged.

    Args:
        student: any network.
        teacher: whose outputs the student's shall be like; None for none.
        train: a DataLoader, a Dataset, a tensor of images or another iterable of batches that can be read every epoch;
            batches are x, (x, labels) or dicts.
        val: the same to validate on; None for a part of `train`.
        config: how to train.
        features: names of nodes that student and teacher, captured graphs then, both have; their tensors are compared
            where `FinetuneConfig.features` is above 0.
        folder: for checkpoint.json, files of tensors and log.jsonl. A training that was interrupted goes on from
            there, to the same bits where it runs in one process on a CPU; a finished one is not run again.
        anew: whether to begin anew, with a warning, where the folder holds an unfinished training of another network
            or configuration, which is refused otherwise. A finished one gives way to the next in any case.
        progress: called as (stage, done, total).

    Raises:
        DataError: the data are empty, cannot be read twice, do not fit the network, or change between epochs.
        TrainingError: the loss is not finite, there is nothing to train by, or the device cannot be used.
        MissingPackageError: timm is not installed, or tensorboard where it is asked for.
        ArtifactError: the folder cannot be written to, or holds the checkpoint of another training.

    Example:
        >>> tuned = finetune(student, teacher, loader, config=FinetuneConfig(epochs=3))  # doctest: +SKIP
        >>> tuned.record.loss_before, tuned.record.loss_after                            # doctest: +SKIP
    """
    config = config or FinetuneConfig()
    require_timm()
    with joined_processes(config.device) as processes, own_randomness(processes.device):
        batches, judging = sources(train, val, config, processes)
        compared = bool(config.features) and teacher is not None and config.loss is None
        pair = [
            tapped(network, features) if compared and network else copy.deepcopy(network)
            for network in (student, teacher)
        ]
        trained, frozen = pair
        assert trained is not None  # there is a student
        if frozen is not None:
            frozen.eval().requires_grad_(False).to(processes.device)
        training = Trainer(
            trained, Objective(config, frozen, tapped=compared), batches, judging, config, processes,
            None if folder is None else Path(folder), progress or silent, anew=anew,
        ).run()  # fmt: skip
    network = copy.deepcopy(student)
    if training.best is not None:
        network.load_state_dict(training.best)
    return Finetuned(network.eval().cpu(), _record(training))


def rehearse(network: nn.Module, train: Any, val: Any, config: FinetuneConfig | None = None) -> None:
    """Compute the loss of a network that is its own teacher on the first batches, so that faults show at once.

    Raises:
        DataError: the data are empty, cannot be read twice, or do not fit the network.
        TrainingError: there is nothing to train by, or the device cannot be used.
    """
    config = config or FinetuneConfig()
    with joined_processes(config.device) as processes, own_randomness(processes.device), torch.no_grad():
        copied = copy.deepcopy(network).eval().to(processes.device)
        objective = Objective(config, copied)
        for source in sources(train, val, config, processes):
            first = next(source.epoch(0)).to(processes.device, torch.contiguous_format)
            objective.judge(copied, [first], objective.metric_name(first), processes)


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


@dataclass(frozen=True, slots=True)
class FinetunedPlan:
    """A fine-tuned compression.

    Attributes:
        model: the merged network, in evaluation mode.
        trainable: what was trained, the same function; `fx_passes.merge(trainable, plan)` gives `model`.
        record: the numbers.
    """

    model: fx.GraphModule
    trainable: fx.GraphModule
    record: FinetuneRecord


def finetune_plan(
    trainable: fx.GraphModule,
    plan: Plan,
    teacher: nn.Module | None,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    config: FinetuneConfig | None = None,
    *,
    calibration: Sequence[Tensor] | None = None,
    folder: str | os.PathLike[str] | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> FinetunedPlan:
    """Return a compression with weights trained on, merged, and compared with what was trained.

    While training, a batch norm follows each fitted convolution (`FinetuneConfig.fit_norms`).

    Args:
        trainable: a linearized graph, fitted; not changed.
        plan: the plan that it was linearized by.
        teacher: usually the original network; None for none.
        train: as for `finetune`.
        val: as for `finetune`.
        config: how to train.
        calibration: batches of images, by which the norms begin and the merged network is compared; None for the
            first ones of `train`.
        folder: as for `finetune`.
        anew: as for `finetune`.
        progress: called as (stage, done, total).

    Raises:
        TrainingError: as for `finetune`, or the merged network is not the function that was trained.
    """
    config = config or FinetuneConfig()
    calibration = _first_images(train, val, config) if calibration is None else calibration
    student = with_norms_for_fits(trainable, plan, calibration) if config.fit_norms else trainable
    ends = [choice.exit for choice in plan]
    tuned = finetune(student, teacher, train, val, config, features=ends, folder=folder, anew=anew, progress=progress)
    assert isinstance(tuned.network, fx.GraphModule)  # as the student is
    if tuned.record.best == "untrained":
        return FinetunedPlan(merge(trainable, plan), trainable, tuned.record)
    merged = merge(tuned.network, plan)
    _require_same(tuned.network, merged, calibration[0])
    return FinetunedPlan(merged, tuned.network, tuned.record)


def _first_images(train: Iterable[Any], val: Iterable[Any] | None, config: FinetuneConfig) -> list[Tensor]:
    """Return the first batches to train on, the same in each run and process."""
    here = Processes(0, 1, torch.device("cpu"))
    with own_randomness(here.device):
        batches = sources(train, val, config, here)[0].epoch(0)
        return [batch.images for batch in itertools.islice(batches, CALIBRATION_BATCHES)]


@torch.no_grad()
def with_norms_for_fits(trainable: fx.GraphModule, plan: Plan, batches: Sequence[Tensor]) -> fx.GraphModule:
    """Return a copy of a linearized graph in which a batch norm that changes nothing follows each fitted convolution.

    Norms that follow one already, from an earlier fine-tuning, stay as they are.

    Args:
        trainable: the graph; not changed.
        plan: the plan that it was linearized by.
        batches: images, whose tensors tell the statistics that the norms begin with.
    """
    network = copy.deepcopy(trainable).eval()
    sums: dict[str, list[Tensor]] = {}
    hooks = [
        place.module.register_forward_hook(_summing(sums, place.core)) for place in fits_without_norm(network, plan)
    ]
    for batch in batches if hooks else ():
        network(batch)
    moments = {}
    for core, (count, total, squares) in sums.items():
        mean = total / count
        moments[core] = mean, (squares / count - mean.square()).clamp_min(0)
    return insert_norms(trainable, plan, moments)


def _summing(sums: dict[str, list[Tensor]], core: str) -> Any:
    """Return a hook that adds up a convolution's outputs and their squares by channel, in float64."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.double()
        found = [torch.tensor(values.numel() / values.shape[1]), values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]
        sums[core] = [a + b for a, b in zip(sums[core], found, strict=True)] if core in sums else found

    return add


@torch.no_grad()
def _require_same(trained: nn.Module, merged: nn.Module, images: Tensor) -> None:
    """Refuse a merged network that is not the function that was trained."""
    for wanted, found in zip(tree_leaves(trained(images)), tree_leaves(merged(images)), strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            error, scale = float((wanted - found).abs().max()), float(wanted.abs().max())
            if not error <= TOLERANCE * max(scale, 1e-6):
                raise TrainingError(
                    f"the merged network differs from the one that was trained by {error:.2g}, where outputs are up to "
                    f"{scale:.2g}; its weights are too large to be merged in single precision, so train with a lower "
                    "learning rate or more weight decay"
                )
