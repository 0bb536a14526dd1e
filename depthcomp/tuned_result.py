"""A compression's result after fine-tuning: trained, merged, measured again, and saved in the place of the first."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthcomp.errors import DataError, DepthCompError
from depthcomp.finetune import finetune_plan
from depthcomp.preparation import Prepared
from depthcomp.progress import Stages
from depthcomp.result import CompressionResult
from depthcomp.timing import NetworkTimer
from depthcomp.training.batches import require_repeatable
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.log import require_tensorboard
from depthcomp.training.recipe import require_timm

__all__ = ["CHECKPOINTS", "require_tunable", "tuned"]

CHECKPOINTS = "finetune"  # the folder of checkpoint and log, in that of the results
MEASUREMENTS = 3  # of a network whose untrained twin met the budget; machines drift


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
    prepared: Prepared,
    data: Any,
    val_data: Iterable[Any] | None,
    config: FinetuneConfig,
    timer: NetworkTimer,
    stages: Stages,
    folder: Path | None,
) -> CompressionResult:
    """Return the result with its network fine-tuned and measured anew, saved where it was saved before.

    Raises:
        DataError: the data do not fit or change; the message says where the last checkpoint is.
        TrainingError: fine-tuning cannot go on; likewise.
        ArtifactError: the folder cannot be written to.
    """
    with stages("fine-tuning"):
        outcome = finetune_plan(
            result.trainable, result.plan, prepared.network, data, val_data, config,
            calibration=prepared.calibration.batches, folder=None if folder is None else folder / CHECKPOINTS,
            anew=True, progress=stages.report,
        )  # fmt: skip
    found = replace(result, model=outcome.model, trainable=outcome.trainable, finetuned=outcome.record)
    with stages("measuring the fine-tuned network"):
        found = _measured(found, timer)
    if folder is not None:
        with stages("saving the fine-tuned network"):
            found.save(folder)
    return found


def _measured(result: CompressionResult, timer: NetworkTimer) -> CompressionResult:
    """Return the result with latencies of its network as it is now, of the first measurement within the budget."""
    for _ in range(MEASUREMENTS):
        original, measured = timer.compare(result.model)
        result = replace(
            result,
            original_timing=original,
            measured_timing=measured,
            budget_ms=result.budget.target_ms(original.median_ms),
        )
        if result.measured_ms <= result.budget_ms:
            return result
    note = (
        f"the fine-tuned network was measured {MEASUREMENTS} times above the budget, which its untrained form met: the "
        "machine has become slower or busier"
    )
    warnings.warn(note, stacklevel=2)
    return replace(result, warnings=(*result.warnings, note))
