"""Checkpoints of a training: JSON beside safetensors, whole at any moment, nothing pickled.

`checkpoint.json` says where the training stands and names its files of tensors. A save writes these files under new
names, then replaces `checkpoint.json`, then removes the files that it no longer names. A run that is killed in between
leaves the earlier checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from depthcomp.errors import ArtifactError
from depthcomp_files import first_fault, require_writable_folder, write_atomically

__all__ = ["BestSoFar", "Checkpoint", "CheckpointFolder", "optimizer_state", "restore_optimizer"]

FILE = "checkpoint.json"
_REMEDY = "delete the folder to begin anew"

State = dict[str, Tensor]


class BestSoFar(BaseModel):
    """The best network so far.

    Attributes:
        what: "untrained", "epoch 3", or "epoch 3, averaged".
        loss: its loss on the validation data.
        metric: its metric on the validation data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    what: str
    loss: float
    metric: float


class Checkpoint(BaseModel):
    """State of a training without its tensors.

    Attributes:
        schema_version: version of this form.
        config: the configuration, as JSON values.
        hashes: hashes of the untrained network, of its teacher, data and functions.
        batches: number of batches in an epoch.
        epoch: the running epoch, from 0.
        batch: number of finished batches of the epoch.
        update: number of finished updates of the weights.
        loss_sum: sum of the losses of this epoch's images.
        images: number of this epoch's images so far.
        seconds: wall time of the training so far.
        metric: name of the metric that decides which network is the best.
        before: scores of the untrained network.
        best: the best network so far.
        history: records of finished epochs.
        groups: the optimiser's groups of parameters, with their learning rates.
        numbers: values other than tensors that the optimiser keeps for a parameter, by the parameter's number.
        scaler: state of the scaler of fp16 gradients.
        serial: number of this checkpoint.
        state: file with the tensors of network, average and optimiser.
        best_file: file with the tensors of the best network; None where that is the untrained one.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[2] = 2
    config: dict[str, Any]
    hashes: dict[str, str]
    batches: int
    epoch: int
    batch: int
    update: int
    loss_sum: float
    images: int
    seconds: float
    metric: str
    before: BestSoFar
    best: BestSoFar
    history: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    numbers: dict[str, dict[str, Any]]
    scaler: dict[str, Any]
    serial: int
    state: str = ""
    best_file: str | None = None


class CheckpointFolder:
    """A folder of one training's checkpoint.

    Args:
        folder: the folder; it is created.
        writes: whether this process writes, or only reads.

    Raises:
        ArtifactError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path = require_writable_folder(folder) if writes else folder
        self._writes = writes

    def read(self) -> Checkpoint | None:
        """Return the checkpoint without its tensors; None where there is none.

        Raises:
            ArtifactError: it is broken, or of another release.
        """
        path = self.path / FILE
        if not path.exists():
            return None
        try:
            return Checkpoint.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = first_fault(error) if isinstance(error, ValidationError) else error.strerror
            raise ArtifactError(f"{path} is not a checkpoint of this release ({reason}); {_REMEDY}") from error

    def tensors(self, name: str) -> State:
        """Return the tensors of one of the checkpoint's files.

        Raises:
            ArtifactError: it is missing or broken.
        """
        path = self.path / Path(name).name
        try:
            return safetensors.torch.load(path.read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); {_REMEDY}") from error

    def write(self, checkpoint: Checkpoint, state: State, best: State | None) -> None:
        """Write a checkpoint in place of the one before.

        Args:
            checkpoint: the checkpoint; its names of files are set.
            state: tensors of network, average and optimiser.
            best: tensors of the best network, where they are newer than the last checkpoint.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        checkpoint.serial += 1
        checkpoint.state = self._write(f"state-{checkpoint.serial}.safetensors", state)
        if best is not None:
            checkpoint.best_file = self._write(f"best-{checkpoint.serial}.safetensors", best)
        if self._writes:
            text = json.dumps(checkpoint.model_dump(), indent=1, allow_nan=False)
            write_atomically(self.path / FILE, f"{text}\n".encode())
            for path in self._leftovers({checkpoint.state, checkpoint.best_file}):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the checkpoint."""
        for path in (self.path / FILE, *self._leftovers(set())):
            path.unlink(missing_ok=True)

    def _write(self, name: str, tensors: State) -> str:
        if self._writes:
            write_atomically(self.path / name, safetensors.torch.save(tensors))
        return name

    def _leftovers(self, named: set[str | None]) -> Iterator[Path]:
        for part in ("state", "best"):
            yield from (path for path in self.path.glob(f"{part}-*.safetensors") if path.name not in named)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], State]:
    """Return the state of an optimiser: groups and numbers as JSON values, and tensors by name.

    Raises:
        ArtifactError: it holds values of another type.
    """
    content = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    tensors: State = {}
    for number, kept in content["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                numbers.setdefault(str(number), {})[name] = value
            else:
                raise ArtifactError(
                    f"the optimiser {type(optimizer).__name__} keeps a {type(value).__name__} as {name}, which "
                    "checkpoints cannot hold; choose adamw or sgd"
                )
    return content["param_groups"], numbers, tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
    numbers: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Load the state from `optimizer_state` into an optimiser; tensors take the memory layout of their parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(number): dict(kept) for number, kept in numbers.items()}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    pairs = zip(groups, optimizer.param_groups, strict=True)
    typed = [{name: _typed(value, own.get(name)) for name, value in group.items()} for group, own in pairs]
    optimizer.load_state_dict({"state": state, "param_groups": typed})


def _typed(value: Any, like: Any) -> Any:
    """Return a list from JSON as a tuple where `like` is one."""
    return tuple(value) if isinstance(like, tuple) else value
