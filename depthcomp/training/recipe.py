"""Recipe of weight updates, from parts of timm and torch: optimiser, schedule, moving average, mixed precision."""

from __future__ import annotations

import contextlib
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from depthcomp.errors import MissingPackageError, TrainingError
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes

__all__ = ["Recipe", "require_timm"]

SLOWEST = 0.01  # share of the learning rate at the start of the warm-up
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def require_timm() -> SimpleNamespace:
    """Return the functions of timm that fine-tuning uses, by name.

    Raises:
        MissingPackageError: timm is not installed.
    """
    try:
        optim, scheduler, utils = (import_module(f"timm.{part}") for part in ("optim", "scheduler", "utils"))
    except ImportError as error:
        raise MissingPackageError('fine-tuning needs the package timm; run `pip install "depthcomp[timm]"`') from error
    return SimpleNamespace(
        create_optimizer=optim.create_optimizer_v2,
        optimizers=optim.list_optimizers,
        create_scheduler=scheduler.create_scheduler_v2,
        average=utils.ModelEmaV3,
    )


class Recipe:
    """Everything that changes the weights of one network.

    Args:
        network: the network to train, on its device.
        config: settings of the training.
        updates_per_epoch: number of updates in an epoch.
        processes: the processes that train together.

    Attributes:
        wrapped: the module to call while training.
        optimizer: the optimiser, from timm.
        average: the moving average of the weights, from timm; None for none.
        scaler: the scaler of fp16 gradients; in other precisions it does nothing.

    Raises:
        MissingPackageError: timm is not installed.
        TrainingError: the optimiser is unknown, no parameter can be trained, or the device lacks the precision.
    """

    def __init__(
        self, network: nn.Module, config: FinetuneConfig, updates_per_epoch: int, processes: Processes
    ) -> None:
        timm = require_timm()
        self._network = network
        self._config = config
        self._device = processes.device
        if config.precision == "fp16" and self._device.type == "cpu":
            raise TrainingError("precision='fp16' needs a GPU; choose 'bf16' or 'fp32' on a CPU")
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise TrainingError(
                "no parameter of the network has requires_grad, so there is nothing to train; call "
                "model.requires_grad_() first"
            )
        if config.optimizer not in timm.optimizers():
            raise TrainingError(
                f"optimizer (={config.optimizer!r}) is unknown to timm; choose one of timm.optim.list_optimizers()"
            )
        self.optimizer: torch.optim.Optimizer = timm.create_optimizer(
            network, config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay,
            momentum=config.momentum,
        )  # fmt: skip
        updates = config.epochs * updates_per_epoch
        self._scheduler, _ = timm.create_scheduler(
            self.optimizer, config.schedule, num_epochs=updates, warmup_epochs=round(config.warmup * updates),
            warmup_lr=SLOWEST * config.learning_rate, step_on_epochs=False, updates_per_epoch=1,
        )  # fmt: skip
        decay = config.ema_decay
        self.average: Any = None if decay is None else timm.average(network, decay=decay, use_warmup=True)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")
        self.wrapped = processes.wrap(network)

    @property
    def networks(self) -> list[nn.Module]:
        """The network and its moving average, if any."""
        return [self._network] if self.average is None else [self._network, self.average.module]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train_mode(self) -> None:
        """Put the network in training mode, except norms whose statistics are frozen."""
        self.wrapped.train()
        for module in self._network.modules():
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if norm and (self._config.freeze_norms or _is_frozen(module)):
                module.eval()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forwards in the training precision."""
        kind = _TYPES[self._config.precision]
        return torch.autocast(self._device.type, dtype=kind, enabled=kind is not torch.float32)

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for backwards whose gradients are not shared among processes."""
        if isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def step(self, update: int) -> None:
        """Update the weights by the gradients, and clear the gradients; `update` counts from 1."""
        if self._config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._network.parameters(), self._config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            self._scheduler.step_update(update)
        if self.average is not None:
            self.average.update(self._network, step=update)


def _is_frozen(module: nn.Module) -> bool:
    """Say whether a module has parameters, and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
