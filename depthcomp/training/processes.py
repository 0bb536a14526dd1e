"""Processes of one training, started by torchrun; usually there is one."""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map

from depthcomp.errors import TrainingError
from depthcomp_errors.first_line import first_line

__all__ = ["Processes", "joined_processes"]

_NAMES = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_SYNC = next(
    name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _NAMES
)  # the new name, or the old


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one training.

    Attributes:
        rank: number of this process.
        count: number of processes.
        device: device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports progress: the first one does."""
        return self.rank == 0

    def share(self, item: Any, size: int) -> Any:
        """Return this process's rows of a batch of `size`, cut from every tensor with that many rows."""
        if self.count == 1:
            return item

        def rows(leaf: Any) -> Any:
            has_rows = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
            return leaf[self.rank :: self.count] if has_rows else leaf

        return tree_map(rows, item)

    def sums(self, *values: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def average_statistics(self, *networks: nn.Module) -> None:
        """Replace the statistics of norms, which differ by process, with their mean over all processes."""
        if self.count == 1:
            return
        for network in networks:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    distributed.all_reduce(buffer)
                    buffer.div_(self.count)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a module that trains `network` together with the other processes; the network itself for one process.

        On GPUs, batch norms become SyncBatchNorm. CPUs have none, so each process normalises by its own images.
        """
        if self.count == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        ids = [self.device] if self.device.type == "cuda" else None
        options: dict[str, Any] = {_SYNC: False}
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, **options)


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if any; they stay joined until Python ends.

    torchrun's store serves one group: processes that leave it cannot join again for the next training.

    Args:
        device: a device of torch, or "auto".

    Raises:
        TrainingError: torch does not know the device, or does not see it.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size(), place)
        return
    if alone:
        yield Processes(0, 1, place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    atexit.register(_leave)
    yield Processes(distributed.get_rank(), distributed.get_world_size(), place)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise TrainingError(f"device (={name!r}) of FinetuneConfig cannot be used: {reason}; choose 'cpu'") from error
    return torch.device("cuda", local_rank) if device == torch.device("cuda") else device
