"""Fine-tuning of a compression: norms for fitted convolutions, training, merge, and a check of the merge."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.randomness import own_randomness
from depthcomp.errors import DataError, TrainingError
from depthcomp.progress import Progress
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import FinetuneRecord, finetune
from depthcomp.training.processes import Processes
from depthcomp.training.sources import sources
from depthcomp_errors.first_line import first_line
from fx_passes import Plan, insert_norms, merge, solved_without_norm
from fx_passes.outputs import tensors_of

__all__ = ["FinetunedPlan", "finetune_plan", "with_norms_for_fits"]

CALIBRATION_BATCHES = 8  # for the initial statistics of norms, where no calibration batches are given
TOLERANCE = 1e-3  # share of the largest output by which the merged network may differ, in single precision


@dataclass(frozen=True, slots=True)
class FinetunedPlan:
    """A fine-tuned compression.

    Attributes:
        model: the merged network, in evaluation mode.
        trainable: the trained form of the same function; `fx_passes.merge(trainable, plan)` gives `model`.
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
    calibration: Sequence[Tensor | Inputs] | None = None,
    folder: str | os.PathLike[str] | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> FinetunedPlan:
    """Train a compression, merge it, and check the merged network against the trained one.

    While training, a batch norm follows each fitted convolution (`FinetuneConfig.fit_norms`).

    Args:
        trainable: a linearized graph, fitted; it is not changed.
        plan: the plan that it was linearized by.
        teacher: usually the original network; None for none.
        train: as for `finetune`.
        val: as for `finetune`.
        config: settings of the training.
        calibration: batches of images for the initial statistics of norms and for the check of the merge; None for the
            first batches of `train`.
        folder: as for `finetune`.
        anew: as for `finetune`.
        progress: called as (stage, done, total).

    Raises:
        DataError: as for `finetune`.
        TrainingError: as for `finetune`, or the merged network differs from the trained one.
    """
    config = config or FinetuneConfig()
    names = InputNames.of(trainable)
    some = _first_images(train, val, config, names) if calibration is None else list(map(Inputs.of, calibration))
    student = with_norms_for_fits(trainable, plan, some) if config.fit_norms else trainable
    ends = [choice.exit for choice in plan]
    tuned = finetune(student, teacher, train, val, config, features=ends, folder=folder, anew=anew, progress=progress)
    assert isinstance(tuned.network, fx.GraphModule)  # as the student is
    if tuned.record.best == "untrained":
        return FinetunedPlan(merge(trainable, plan), trainable, tuned.record)
    merged = merge(tuned.network, plan)
    _require_same(tuned.network, merged, some[0])
    return FinetunedPlan(merged, tuned.network, tuned.record)


def _first_images(
    train: Iterable[Any], val: Iterable[Any] | None, config: FinetuneConfig, names: InputNames
) -> list[Inputs]:
    """Return the first batches to train on, equal in each run and process."""
    here = Processes(0, 1, torch.device("cpu"))
    with own_randomness(here.device):
        return [batch.images for batch in sources(train, val, config, here, names=names)[0].first(CALIBRATION_BATCHES)]


@torch.no_grad()
def with_norms_for_fits(trainable: fx.GraphModule, plan: Plan, batches: Sequence[Inputs]) -> fx.GraphModule:
    """Return a copy of a linearized graph in which a batch norm follows each fitted convolution.

    The new norms change nothing at first. Norms from an earlier fine-tuning stay as they are.

    Args:
        trainable: the graph; it is not changed.
        plan: the plan that it was linearized by.
        batches: images for the initial statistics of the norms.
    """
    network = copy.deepcopy(trainable).eval()
    sums: dict[str, list[Tensor]] = {}
    solved = solved_without_norm(network, plan)
    hooks = [conv.register_forward_hook(_summing(sums, name)) for name, conv in solved.items()]
    for batch in batches if hooks else ():
        _run(network, batch)
    moments = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        moments[name] = mean, (squares / count - mean.square()).clamp_min(0)
    return insert_norms(trainable, plan, moments)


def _run(network: nn.Module, images: Inputs) -> None:
    try:
        images.through(network)
    except Exception as error:  # layers raise errors of many types
        reason = first_line(error)
        raise DataError(
            f"the network cannot run on images {images} ({reason}); give images of the "
            "shape and type that it was compressed with"
        ) from error


def _summing(sums: dict[str, list[Tensor]], name: str) -> Any:
    """Return a hook that adds up a convolution's outputs and their squares by channel, in float64."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.double()
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        found = [torch.tensor(values.numel() / values.shape[1]), values.sum(others), values.square().sum(others)]
        sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found

    return add


@torch.no_grad()
def _require_same(trained: nn.Module, merged: nn.Module, images: Inputs) -> None:
    """Refuse a merged network that differs from the trained one."""
    for wanted, found in zip(*(tensors_of(images.through(each)) for each in (trained, merged)), strict=True):
        if wanted.is_floating_point():
            error, scale = float((wanted - found).abs().max()), float(wanted.abs().max())
            if not error <= TOLERANCE * max(scale, 1e-6):
                raise TrainingError(
                    f"the merged network's outputs differ by {error:.2g} from the trained network's, which reach "
                    f"{scale:.2g}; the weights are too large to merge in single precision, so train with a lower "
                    "learning rate or more weight decay"
                )
