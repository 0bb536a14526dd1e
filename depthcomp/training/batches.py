"""The batches to train and to validate on: read anew each epoch, in an order that the epoch's number decides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from depthcomp.data import images_of, labels_of, require_values
from depthcomp.errors import DataError
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes

__all__ = ["Batch", "Source", "own_randomness", "require_repeatable", "seed_everything", "sources"]

_MENDED = "pass a DataLoader, a Dataset or a list of batches"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, or one process's rows of it.

    Attributes:
        images: (n, c, h, w).
        labels: what stands beside them as labels; None where there are none.
        item: the whole batch, as the data gave it.
    """

    images: Tensor
    labels: Tensor | None
    item: Any

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, item: Any, argument: str) -> Batch:
        """Return an item of the data as a batch.

        Raises:
            DataError: it holds no batch of finite floating-point images.
        """
        images = images_of(item, argument)
        if images.ndim != 4:
            raise DataError(
                f"an item of {argument} has shape {tuple(images.shape)}, and fine-tuning needs batches of images "
                "(n, c, h, w); torch.utils.data.DataLoader(..., batch_size=64) makes them"
            )
        require_values(images, argument)
        return cls(images, _labels_of(item), item)

    def to(self, device: torch.device, memory: torch.memory_format) -> Batch:
        """Return the batch on a device, its images in a memory format."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            leaf = leaf.to(device, non_blocking=True)
            return leaf.contiguous(memory_format=memory) if leaf.ndim == 4 else leaf

        item = tree_map(moved, self.item)
        return Batch(images_of(item, "data"), _labels_of(item), item)


def _labels_of(item: Any) -> Tensor | None:
    found = labels_of(item)
    return found if isinstance(found, Tensor) else None


def require_repeatable(data: object, argument: str) -> None:
    """Refuse data that can be read once only.

    Raises:
        DataError: they are an iterator, or nothing that can be iterated over.
    """
    if isinstance(data, Iterator):
        raise DataError(
            f"{argument} is a {type(data).__name__}, which can be read once, and fine-tuning reads it every epoch; "
            f"{_MENDED}"
        )
    if not isinstance(data, Iterable | Dataset) or isinstance(data, str | bytes):
        raise DataError(f"{argument} is a {type(data).__name__}; {_MENDED}")


class Source:
    """Data as checked batches, each process's own rows of them.

    Args:
        data: a DataLoader, or another iterable of batches that can be read again and again.
        argument: what the user calls it, for messages.
        processes: who shares the batches.
        least: batches with fewer images are passed over.
        seed: decides the order of each epoch, where it is random.
    """

    def __init__(self, data: Iterable[Any], argument: str, processes: Processes, least: int, seed: int) -> None:
        self._argument = argument
        self._processes = processes
        self._least = least
        self._seed = seed
        self._data = _shared_out(data, argument, processes, least)
        self._shape: torch.Size | None = None
        self._length: int | None = None

    def __len__(self) -> int:
        """Return how many batches an epoch has; data that do not tell are read once to know.

        Raises:
            DataError: there is none.
        """
        if self._length is None:
            self._length = self._counted()
        if self._length == 0:
            few = f" of {self._least} images or more" if self._least > 1 else ""
            raise DataError(f"{self._argument} holds no batch{few}; pass data with more images, or larger batches")
        return self._length

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch `start` on.

        Random numbers are drawn anew from the seed, the epoch and the batch's number: an epoch that is entered in the
        middle goes on as one that was not left. What the data have beyond the batches of the first epoch is left out.

        Raises:
            DataError: an item holds no images or images of another shape, or there are fewer batches than before.
        """
        done = 0
        for batch in itertools.islice(self._batches(number), len(self)):
            done += 1
            if done > start:
                yield batch
        if done < len(self):
            raise DataError(
                f"{self._argument} ended after {done} batches in epoch {number + 1}, and an epoch has {len(self)}; "
                "give data that have as many each time"
            )

    def _batches(self, number: int) -> Iterator[Batch]:
        _enter(self._data, self._seed, number)
        items = iter(self._data)
        for index in itertools.count():
            seed_everything(self._seed, number, index)
            try:
                item = next(items)
            except StopIteration:
                return
            batch = self._checked(item)
            if batch is not None:
                yield batch

    def _checked(self, item: Any) -> Batch | None:
        batch = Batch.of(item, self._argument)
        shape = batch.images.shape[1:]
        self._shape = self._shape or shape
        if shape != self._shape:
            raise DataError(
                f"{self._argument} holds images of shape {tuple(shape)} after ones of {tuple(self._shape)}; "
                "bring them to one shape, as torchvision's Resize does"
            )
        if isinstance(self._data, DataLoader) and isinstance(self._data.batch_sampler, _Shares):
            return batch
        if len(batch) < self._least:
            return None
        return Batch.of(self._processes.share(item, len(batch)), self._argument)

    def _counted(self) -> int:
        sampler = getattr(self._data, "batch_sampler", None)
        if isinstance(self._data, DataLoader) and sampler is not None:
            seed_everything(self._seed, 0, 0)
            return sum(isinstance(sampler, _Shares) or len(indices) >= self._least for indices in sampler)
        return sum(1 for _ in self._batches(0))


class _Shares:
    """Batches of indices of which each process loads its own rows."""

    def __init__(self, batches: Iterable[Sequence[Any]], processes: Processes, least: int) -> None:
        self._batches = batches
        self._processes = processes
        self._least = least

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._batches:
            if len(batch) >= self._least:
                yield list(batch)[self._processes.rank :: self._processes.count]


def _shared_out(data: Iterable[Any], argument: str, processes: Processes, least: int) -> Iterable[Any]:
    """Return data of which each process loads no more than its own rows, where that can be arranged."""
    if processes.count == 1 or not isinstance(data, DataLoader) or data.batch_sampler is None:
        return data
    if isinstance(data.sampler, DistributedSampler):
        raise DataError(
            f"{argument} has a DistributedSampler, and fine-tuning itself shares each batch out among the processes; "
            "pass a DataLoader with shuffle=True, as for one process"
        )
    return _like(data, data.dataset, batch_sampler=_Shares(data.batch_sampler, processes, max(least, processes.count)))


def _like(loader: DataLoader[Any], dataset: Dataset[Any], **batching: Any) -> DataLoader[Any]:
    """Return a loader that loads as another does, from other data or in other batches."""
    return DataLoader(
        dataset, num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        timeout=loader.timeout, worker_init_fn=loader.worker_init_fn, generator=loader.generator,
        multiprocessing_context=loader.multiprocessing_context, prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers, **batching,
    )  # fmt: skip


def sources(train: Any, val: Any, config: FinetuneConfig, processes: Processes) -> tuple[Source, Source]:
    """Return what to train and what to validate on.

    Without validation data, a part of the training data validates: images drawn by the seed from a Dataset, a tensor
    or a DataLoader that is in order or shuffled; every so-many-th batch of anything else, which must then come in the
    same order each time. Neighbours, such as frames of one film, are not kept together: pass validation data then.

    Raises:
        DataError: the data cannot be read twice, or cannot be split.
    """
    require_repeatable(train, "data")
    loader = _loader(train, config, shuffled=True)
    if val is None:
        loader, judging = _split(loader, config)
    else:
        require_repeatable(val, "val_data")
        judging = _loader(val, config, shuffled=False)
    least = 2 * processes.count  # a norm needs two values to normalise
    return (
        Source(loader, "data", processes, least, config.seed),
        Source(judging, "data" if val is None else "val_data", processes, 1, config.seed),
    )


def _loader(data: Any, config: FinetuneConfig, *, shuffled: bool) -> Iterable[Any]:
    """Return data in batches, images (n, c, h, w) and Datasets in those of the configuration."""
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset):
        found: Iterable[Any] = data
        return found
    return DataLoader(data, batch_size=config.batch_size, shuffle=shuffled)


def _split(loader: Iterable[Any], config: FinetuneConfig) -> tuple[Iterable[Any], Iterable[Any]]:
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        step = max(2, round(1 / config.val_share))
        return _Part(loader, step, held=False), _Part(loader, step, held=True)
    sampler = loader.sampler
    if not isinstance(sampler, RandomSampler | SequentialSampler) or type(loader.batch_sampler) is not BatchSampler:
        raise DataError(
            f"data is drawn by a {type(sampler).__name__}, so no part of it can be set apart to validate on; "
            "pass val_data="
        )
    shuffled = isinstance(sampler, RandomSampler)
    size = len(sampler.data_source)
    count = max(1, round(config.val_share * size))
    if count >= size:
        raise DataError(f"data holds {size} images, too few to set some apart to validate on; pass val_data=")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(config.seed)).tolist()
    held, kept = sorted(order[:count]), sorted(order[count:])
    batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    return (
        _like(loader, Subset(loader.dataset, kept), shuffle=shuffled, **batching),
        _like(loader, Subset(loader.dataset, held), shuffle=False, batch_size=loader.batch_size),
    )


class _Part:
    """Every so-many-th batch of the data, or all others."""

    def __init__(self, data: Iterable[Any], step: int, *, held: bool) -> None:
        self._data = data
        self._step = step
        self._held = held

    def __iter__(self) -> Iterator[Any]:
        return (item for index, item in enumerate(self._data) if (index % self._step == 1) is self._held)


def _enter(data: Iterable[Any], seed: int, epoch: int) -> None:
    """Tell data that draw their own order which epoch begins."""
    for owner in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(_mixed(seed, epoch))
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def seed_everything(*numbers: int) -> None:
    """Seed the random numbers of torch, NumPy and Python by some numbers together."""
    seed = _mixed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's random numbers back as they were, however many are drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
