"""The parts of timm and torch that move weights: optimiser, schedule, moving average, mixed precision."""

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

SLOWEST = 0.01  # of the learning rate, where it begins to rise
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def require_timm() -> SimpleNamespace:
    """Return what of timm is used, by name.

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
        network: what is trained, on its device.
        config: how.
        updates_per_epoch: how many updates an epoch has.
        processes: who trains together.

    Attributes:
        wrapped: what to call while training.
        optimizer: timm's.
        average: timm's moving average of the weights; None for none.
        scaler: of fp16's gradients; in other precisions it does nothing.

    Raises:
        MissingPackageError: timm is not installed.
        TrainingError: the optimiser is unknown, no parameter is to be trained, or the device lacks the precision.
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
                f"optimizer (={config.optimizer!r}) is unknown to timm; timm.optim.list_optimizers() lists them"
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
        """The network and, where there is one, its average."""
        return [self._network] if self.average is None else [self._network, self.average.module]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train_mode(self) -> None:
        """Put the network in training mode; norms only where their statistics may change."""
        self.wrapped.train()
        for module in self._network.modules() if self._config.freeze_norms else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which networks compute."""
        kind = _TYPES[self._config.precision]
        return torch.autocast(self._device.type, dtype=kind, enabled=kind is not torch.float32)

    def apart(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which gradients stay in their process."""
        if isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def step(self, update: int) -> None:
        """Move the weights by the gradients, which are then forgotten; `update` counts from 1."""
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
