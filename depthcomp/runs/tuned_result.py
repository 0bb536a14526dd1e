"""Result of a compression after fine-tuning: trained, merged, measured again, saved in place of the first result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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

CHECKPOINTS = "finetune"  # the folder of checkpoint and log, in that of the results
UNFINISHED = "unfinished"  # a file there, and the trainable form beside it, until the outcome of the training is saved
MEASUREMENTS = 3  # of a network whose untrained twin met the budget; machines drift
_TOO_SLOW = (
    f"the fine-tuned network was measured {MEASUREMENTS} times above the budget, which its untrained form met: the "
    "machine has become slower or busier"
)


def require_tunable(config: object, data: object, val_data: object) -> None:
    """Refuse what would stop fine-tuning only after all has been measured; a config of None asks for none.

    Raises:
        DepthCompError: `config` is no FinetuneConfig, or torchrun started several processes, which would disturb each
            other's measurements.
        DataError: there are no data, or they can be read once only.
        MissingPackageError: timm is not installed, or tensorboard where it is asked for.
    """
    if config is None:
        return
    if not isinstance(config, FinetuneConfig):
        raise DepthCompError(f"finetune (={config!r}) must be a FinetuneConfig, or None not to fine-tune")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DepthCompError(
            "compress_depth measures latencies and runs in one process; compress first, then start "
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
    """Return a result with its network fine-tuned and measured anew, and save it.

    Of several processes that train together the first one measures and saves; the others return what was trained.

    Args:
        result: what to go on from; its trainable form may have been fine-tuned before.
        teacher: as for `finetune_plan`.
        data: likewise.
        val_data: likewise.
        config: likewise.
        timer: measures against the original; None to leave the latencies as they are.
        stages: are named, reported and timed.
        checkpoints: the folder of checkpoint and log; None for none.
        out: the folder to save to; None for none.

    Raises:
        DataError: the data do not fit or change; the message says where the last checkpoint is.
        TrainingError: fine-tuning cannot go on; likewise.
        ArtifactError: the folder cannot be written to.
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
    calibration: Sequence[Tensor] | None = None,
    anew: bool = False,
) -> CompressionResult:
    """Return a result with its network fine-tuned and its latencies as they were.

    A finished training is not run again, and the same outcome counts once: a run may have been killed while it saved.
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
    """Return a fine-tuned result measured anew, and save it; for arguments and errors see `tuned`."""
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
    """Say whether this process is the first of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _measured(result: CompressionResult, timer: NetworkTimer) -> CompressionResult:
    """Return the result with latencies of its network as it is now, of the first measurement within the budget.

    What was predicted stays the same share of the original's latency.
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
