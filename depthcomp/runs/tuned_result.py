"""Fine-tuned result of a compression, measured anew and saved in place of the first result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from depthcomp.data.inputs import Inputs
from depthcomp.errors import DataError, DepthCompError
from depthcomp.latency.timing import NetworkTimer
from depthcomp.progress import Stages
from depthcomp.results.result import CompressionResult
from depthcomp.results.saving import TRAINABLE
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.log import require_tensorboard
from depthcomp.training.plan import finetune_plan
from depthcomp.training.recipe import require_timm
from depthcomp.training.sources import require_repeatable
from depthcomp.warning import warn_caller

__all__ = ["CHECKPOINTS", "UNFINISHED", "completed", "is_first_process", "require_tunable", "trained", "tuned"]

CHECKPOINTS = "finetune"  # folder of checkpoint and log, inside the folder of results
UNFINISHED = "unfinished"  # marks that folder, with the trainable form beside it, until the tuned result is saved
MEASUREMENTS = 3  # at most, of a network whose untrained form met the budget; machines drift
_TOO_SLOW = (
    f"the fine-tuned network was measured {MEASUREMENTS} times above the budget, which its untrained form met: the "
    "machine has become slower or busier"
)  # saved results are matched by it


def require_tunable(config: object, data: object, val_data: object) -> None:
    """Refuse, before any measurement, arguments with which fine-tuning would fail; a config of None passes.

    Raises:
        DepthCompError: `config` is no FinetuneConfig, or torchrun started several processes, which would disturb each
            other's measurements.
        DataError: there are no data, or they can be read only once.
        MissingPackageError: timm is not installed, or tensorboard where the config asks for it.
    """
    if config is None:
        return
    if not isinstance(config, FinetuneConfig):
        raise DepthCompError(f"finetune (={config!r}) must be a FinetuneConfig, or None not to fine-tune")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DepthCompError(
            "compress_depth must run in one process, as it measures latencies; compress first, then start "
            "`depthcomp finetune DIR` with torchrun"
        )
    if data is None:
        raise DataError("finetune needs data to train on; pass data=")
    require_repeatable(data, "data")
    if val_data is not None:
        require_repeatable(val_data, "val_data")
    require_timm()
    if config.tensorboard:
        require_tensorboard()


def tuned(
    result: CompressionResult,
    teacher: nn.Module | None,
    data: Any,
    val_data: Any,
    config: FinetuneConfig,
    timer: NetworkTimer | None,
    stages: Stages,
    *,
    checkpoints: Path | None,
    out: Path | None,
) -> CompressionResult:
    """Fine-tune a result's network, measure it anew, save the result and return it.

    Where several processes train together, only the first measures and saves; the others return the trained result.

    Args:
        result: the result to start from; its trainable form may have been fine-tuned before.
        teacher: as for `finetune_plan`.
        data: as for `finetune_plan`.
        val_data: as for `finetune_plan`.
        config: as for `finetune_plan`.
        timer: measures against the original; None to leave the latencies as they are.
        stages: names, reports and times the stages.
        checkpoints: folder of checkpoint and log; None for no checkpoint.
        out: folder to save to; None not to save.

    Raises:
        DataError: the data do not fit, or change between passes; the message names the last checkpoint.
        TrainingError: fine-tuning cannot continue; the message names the last checkpoint.
        ArtifactError: the folder cannot be written.
    """
    found = trained(result, teacher, data, val_data, config, stages, checkpoints=checkpoints)
    return completed(found, timer, stages, checkpoints=checkpoints, out=out) if is_first_process() else found


def trained(
    result: CompressionResult,
    teacher: nn.Module | None,
    data: Any,
    val_data: Any,
    config: FinetuneConfig,
    stages: Stages,
    *,
    checkpoints: Path | None,
    calibration: Sequence[Inputs] | None = None,
    anew: bool = False,
) -> CompressionResult:
    """Fine-tune a result's network, and return the result with its old latencies.

    A finished training does not run again, and its record counts once, as a run may be killed while it saves.
    `calibration` and `anew` are as for `finetune_plan`, the other arguments and the errors as for `tuned`.
    """
    with stages("fine-tuning"):
        outcome = finetune_plan(
            result.trainable, result.plan, teacher, data, val_data, config,
            calibration=calibration, folder=checkpoints, anew=anew, progress=stages.report,
        )  # fmt: skip
    before = () if result.finetuned in (None, outcome.record) else (result.finetuned,)
    return replace(
        result, model=outcome.model, trainable=outcome.trainable, finetuned=outcome.record,
        tuned_before=(*result.tuned_before, *before), seconds=dict(stages.seconds),
    )  # fmt: skip


def completed(
    result: CompressionResult, timer: NetworkTimer | None, stages: Stages, *, checkpoints: Path | None, out: Path | None
) -> CompressionResult:
    """Measure a fine-tuned result anew, save it and return it; for arguments and errors see `tuned`."""
    if timer is not None:
        with stages("measuring the fine-tuned network"):
            result = _measured(result, timer)
        result = replace(result, seconds=dict(stages.seconds))
    if out is not None:
        with stages("saving the fine-tuned network"):
            result.save(out)
    if checkpoints is not None:
        (checkpoints / UNFINISHED).unlink(missing_ok=True)
        shutil.rmtree(checkpoints / TRAINABLE, ignore_errors=True)
    return result


def is_first_process() -> bool:
    """Return whether this process is the first that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _measured(result: CompressionResult, timer: NetworkTimer) -> CompressionResult:
    """Return the result with new latencies, from the first measurement within the budget or the last one.

    The prediction keeps its share of the original's latency.
    """
    result = replace(result, warnings=tuple(note for note in result.warnings if note != _TOO_SLOW))
    for _ in range(MEASUREMENTS):
        original, measured = timer.compare(result.model)
        result = replace(
            result,
            predicted_ms=result.predicted_ms * original.median_ms / result.original_ms,
            original_timing=original,
            measured_timing=measured,
            budget_ms=result.budget.target_ms(original.median_ms),
        )
        if result.measured_ms <= result.budget_ms:
            return result
    warn_caller(_TOO_SLOW)
    return replace(result, warnings=(*result.warnings, _TOO_SLOW))
