"""Training loop with updates, epochs and validation, which resumes from its checkpoint with equal results."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depthcomp.data.randomness import seed_everything
from depthcomp.errors import ArtifactError, DataError, TrainingError
from depthcomp.fingerprint import network_hash
from depthcomp.progress import Progress
from depthcomp.training.batches import Batch, Source
from depthcomp.training.checkpoint import (
    BestSoFar,
    Checkpoint,
    CheckpointFolder,
    optimizer_state,
    restore_optimizer,
)
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.identity import function_hash
from depthcomp.training.log import TrainingLog
from depthcomp.training.objective import Objective, Score
from depthcomp.training.processes import Processes
from depthcomp.training.recipe import Recipe
from depthcomp.warning import warn_caller

__all__ = ["Trainer", "Training"]

STAGE = "fine-tuning"
_OTHERS = {
    "network": "of another network", "teacher": "with another teacher", "data": "on other data",
    "val_data": "that was judged on other data", "loss": "with another function loss",
    "metric": "with another function metric",
}  # fmt: skip
_MAY_DIFFER = ("device", "workers", "log_updates", "checkpoint_updates", "tensorboard")  # when a training goes on


@dataclass(frozen=True, slots=True)
class Training:
    """Outcome of a training.

    Attributes:
        best: tensors of the best network; None where that is the untrained one.
        checkpoint: the numbers.
    """

    best: dict[str, Tensor] | None
    checkpoint: Checkpoint


class Trainer:
    """Trains one network.

    Args:
        network: the network to train; it is changed.
        objective: the loss and the metric.
        train: the batches to train on.
        val: the batches to validate on.
        config: settings of the training.
        processes: the processes that train together.
        folder: folder of checkpoint and log; None for none.
        progress: called as (stage, done, total), in batches.
        anew: whether to replace an unfinished training that differs from this one.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, train: Source, val: Source, config: FinetuneConfig,
        processes: Processes, folder: Path | None, progress: Progress, *, anew: bool = False,
    ) -> None:  # fmt: skip
        self._network = network
        self._objective = objective
        self._train = train
        self._val = val
        self._config = config
        self._processes = processes
        self._report = progress
        self._anew = anew
        self._store = None if folder is None else CheckpointFolder(folder, writes=processes.writes)
        self._memory = torch.channels_last if config.channels_last else torch.contiguous_format

    def run(self) -> Training:
        """Train to the end, from the checkpoint if there is one.

        Raises:
            DataError: the data do not fit; the message names the last checkpoint.
            TrainingError: the loss is not finite, or there is nothing to train by.
            ArtifactError: the folder holds the checkpoint of another training, or cannot be written.
        """
        self._begin()
        log_folder = self._store.path if self._store is not None and self._processes.writes else None
        self._log = TrainingLog(log_folder, self._at.update, tensorboard=self._config.tensorboard)
        try:
            for epoch in range(self._at.epoch, self._config.epochs):
                self._epoch(epoch)
        except (DataError, TrainingError) as error:
            raise type(error)(f"{error}; {self._what_stays()}") from error
        finally:
            self._log.close()
        return Training(self._best, self._at)

    def _begin(self) -> None:
        """Set up the training, from the checkpoint if there is one."""
        hashes = {} if self._store is None else self._hashes()
        self._network.to(self._processes.device)
        self._network.to(memory_format=self._memory)
        self._weights = next(self._network.parameters(), torch.empty(0, device=self._processes.device))
        self._recipe = Recipe(self._network, self._config, self._updates_per_epoch(), self._processes)
        self._started = time.perf_counter()
        self._best: dict[str, Tensor] | None = None
        found = None if self._store is None else self._read(self._store, hashes)
        if found is None:
            self._at = self._first(hashes)
            self._at.groups = optimizer_state(self._recipe.optimizer)[0]
        else:
            self._resume(found)
        self._earlier = self._at.seconds

    def _updates_per_epoch(self) -> int:
        return -(-len(self._train) // self._config.accumulate)

    def _first(self, hashes: dict[str, str]) -> Checkpoint:
        """Return the checkpoint of a new training, whose best network is the untrained one."""
        first = next(iter(self._val.epoch(0))) if len(self._val) else None
        assert first is not None  # an empty source has no length but an error
        metric = self._objective.metric_name(first)
        score = self._judge(self._network, metric)
        for what, value in (("loss", score.loss), (f"metric {metric}", score.metric)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {what} of the untrained network on the validation data is {value}; correct the data, the "
                    "network or the function first"
                )
        untrained = BestSoFar(what="untrained", loss=score.loss, metric=score.metric)
        return Checkpoint(
            config=_plain(self._config), hashes=hashes, batches=len(self._train), epoch=0, batch=0, update=0,
            loss_sum=0.0, images=0, seconds=0.0, metric=metric, before=untrained, best=untrained, history=[], groups=[],
            numbers={}, scaler={}, serial=0,
        )  # fmt: skip

    def _read(self, store: CheckpointFolder, hashes: dict[str, str]) -> Checkpoint | None:
        """Return the checkpoint to resume from; None to start anew."""
        found = store.read()
        other = "" if found is None else self._other(found, hashes)
        if found is None or not other:
            if found is not None and found.epoch == self._config.epochs and self._processes.writes:
                warn_caller(f"{store.path} holds this training; it is finished and does not run again")
            return found
        what = f"{store.path} holds the checkpoint of a training {other}"
        if found.epoch < found.config["epochs"]:
            if not self._anew:
                raise ArtifactError(f"{what}; give another folder, or delete that one")
            warn_caller(f"{what}; the checkpoint is removed, and fine-tuning starts anew")
        if self._processes.writes:
            store.clear()
        return None

    def _other(self, found: Checkpoint, hashes: dict[str, str]) -> str:
        """Return how a checkpoint's training differs from this one; empty where it does not."""
        here = _plain(self._config)
        other = [
            field.name
            for field in fields(FinetuneConfig)
            if field.name not in _MAY_DIFFER and found.config.get(field.name) != here[field.name]
        ]
        if found.hashes["network"] != hashes["network"]:
            return _OTHERS["network"]
        if other:
            return f"with {other[0]}={found.config.get(other[0])!r}, not {here[other[0]]!r}"
        if found.batches != len(self._train):
            return f"with {found.batches} batches in an epoch, not {len(self._train)}"
        return next((said for what, said in _OTHERS.items() if found.hashes.get(what) != hashes.get(what)), "")

    def _hashes(self) -> dict[str, str]:
        """Return hashes of the inputs of the training: network, teacher, data and functions."""
        functions = {"loss": self._config.loss, "metric": self._config.metric}
        found = {name: function_hash(function) for name, function in functions.items() if callable(function)}
        if self._objective.teacher is not None:
            found["teacher"] = network_hash(self._objective.teacher)
        network = network_hash(self._network)
        return found | {"network": network, "data": self._train.digest(), "val_data": self._val.digest()}

    def _resume(self, found: Checkpoint) -> None:
        assert self._store is not None  # where the checkpoint was found
        tensors = self._store.tensors(found.state)
        self._network.load_state_dict(_under("network.", tensors))
        if self._recipe.average is not None:
            self._recipe.average.module.load_state_dict(_under("average.", tensors))
        restore_optimizer(self._recipe.optimizer, found.groups, found.numbers, _under("optimizer.", tensors))
        self._recipe.scaler.load_state_dict(found.scaler)
        self._best = None if found.best_file is None else self._store.tensors(found.best_file)
        self._at = found

    def _epoch(self, epoch: int) -> None:
        for group in self._groups(epoch):
            self._update(group, epoch)
            every = self._config.checkpoint_updates
            if every is not None and self._at.update % every == 0 and self._at.batch < len(self._train):
                self._save(None)
        self._processes.average_statistics(*self._recipe.networks)
        best = self._compare(epoch)
        self._at.epoch, self._at.batch, self._at.loss_sum, self._at.images = epoch + 1, 0, 0.0, 0
        self._save(best)

    def _groups(self, epoch: int) -> Iterator[list[Batch]]:
        """Yield the batches of each remaining update of an epoch."""
        batches = self._train.epoch(epoch, start=self._at.batch)
        while group := list(itertools.islice(batches, self._config.accumulate)):
            yield group

    def _update(self, group: list[Batch], epoch: int) -> None:
        recipe, rank = self._recipe, self._processes.rank
        recipe.train_mode()
        seed_everything(self._config.seed, epoch, self._at.batch, 1 + rank)  # for dropout; the data have drawn theirs
        images, labels = self._processes.sums(sum(map(len, group)), sum(batch.counted for batch in group))
        total = 0.0
        for index, batch in enumerate(group):
            moved = batch.to(self._weights, self._memory)
            together = nullcontext() if index + 1 == len(group) else recipe.apart()
            with together:
                with recipe.autocast():
                    share = len(batch) / images
                    labelled = batch.counted / labels / share if labels else 1.0  # 1 to the bit where all count
                    loss = self._objective.loss(recipe.wrapped, moved, labelled)
                total += float(loss.detach()) * share
                torch.autograd.backward(recipe.scaler.scale(loss * (share * self._processes.count)))
        (mean,) = self._processes.sums(total)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is {mean} in epoch {epoch + 1}, batch {self._at.batch + 1}; lower the learning rate, clip "
                "gradients with clip_norm, or look for faulty images or labels"
            )
        recipe.step(self._at.update + 1)
        self._at.batch += len(group)
        self._at.update += 1
        self._at.loss_sum += mean * images
        self._at.images += int(images)
        self._tell(epoch, mean)

    def _tell(self, epoch: int, loss: float) -> None:
        if self._processes.writes:
            self._report(STAGE, epoch * len(self._train) + self._at.batch, self._config.epochs * len(self._train))
            if self._at.update % self._config.log_updates == 0:
                rate = self._recipe.learning_rate
                self._log.write("update", self._at.update, epoch=epoch + 1, loss=loss, learning_rate=rate)

    def _compare(self, epoch: int) -> dict[str, Tensor] | None:
        """Validate the network and its average after an epoch; return the tensors of a new best one, else None."""
        known: dict[str, Any] = {
            "epoch": epoch + 1,
            "train_loss": self._at.loss_sum / self._at.images,
            "learning_rate": self._recipe.learning_rate,
        }
        best = None
        for network, suffix in zip(self._recipe.networks, ("", "averaged"), strict=False):
            score = self._judge(network, self._at.metric)
            prefix = f"{suffix}_" if suffix else ""
            known |= {f"{prefix}val_loss": _finite(score.loss), f"{prefix}val_metric": _finite(score.metric)}
            if math.isfinite(score.loss) and score.beats(Score(self._at.best.loss, self._at.best.metric)):
                what = f"epoch {epoch + 1}, {suffix}" if suffix else f"epoch {epoch + 1}"
                self._at.best = BestSoFar(what=what, loss=score.loss, metric=score.metric)
                best = self._best = _copied(network)
        self._at.seconds = self._earlier + time.perf_counter() - self._started
        known["seconds"] = self._at.seconds
        self._at.history.append(known)
        self._log.write("epoch", self._at.update, **known)
        return best

    @torch.no_grad()
    def _judge(self, network: nn.Module, metric: str) -> Score:
        network.eval()
        batches = (batch.to(self._weights, self._memory) for batch in self._val.epoch(0))
        with self._recipe.autocast():
            return self._objective.judge(network, batches, metric, self._processes)

    def _save(self, best: dict[str, Tensor] | None) -> None:
        if self._store is None:
            return
        self._at.seconds = self._earlier + time.perf_counter() - self._started
        self._at.groups, self._at.numbers, tensors = optimizer_state(self._recipe.optimizer)
        self._at.scaler = self._recipe.scaler.state_dict()
        state = {f"optimizer.{name}": _stored(tensor) for name, tensor in tensors.items()}
        for network, prefix in zip(self._recipe.networks, ("network.", "average."), strict=False):
            state |= {prefix + name: tensor for name, tensor in _copied(network).items()}
        self._store.write(self._at, state, best)

    def _what_stays(self) -> str:
        """Return a sentence on what an error leaves behind."""
        if self._store is None or not self._at.serial:
            return "nothing was written, and the network is unchanged"
        return (
            f"the checkpoint after {self._at.update} updates stays in {self._store.path}, with the best network so far "
            f"({self._at.best.what})"
        )


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json())
    return content


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: _stored(tensor) for name, tensor in network.state_dict().items()}


def _stored(tensor: Tensor) -> Tensor:
    """Return a copy as safetensors takes it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
