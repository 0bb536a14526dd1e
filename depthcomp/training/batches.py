"""Batches of images, checked, shared among processes, and read anew in each epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from depthcomp.data.input_checks import as_tensor, require_examples, require_values
from depthcomp.data.input_kind import VECTORS, shape_words
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.randomness import entered, seed_everything
from depthcomp.data.unlabelled import IGNORED
from depthcomp.errors import DataError
from depthcomp.fingerprint import fingerprint
from depthcomp.training.processes import Processes

__all__ = ["Batch", "Source", "loader_like", "told_length"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, or one process's rows of it.

    Attributes:
        images: n images, or examples of several inputs.
        labels: their labels; None where there are none.
        item: the whole batch, as the data gave it.
        names: names of the inputs.
    """

    images: Inputs
    labels: Tensor | None
    item: Any
    names: InputNames = ONE_IMAGE

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counted(self) -> int:
        """Number of labels that count; the number of images where labels are missing or are class shares."""
        if self.labels is None or self.labels.is_floating_point():
            return len(self)
        return int((self.labels != IGNORED).sum())

    @classmethod
    def of(cls, item: Any, argument: str, names: InputNames = ONE_IMAGE) -> Batch:
        """Return an item of the data as a batch of `names.rank` dimensions, or of vectors.

        Raises:
            DataError: the item holds no batch of finite floating-point images.
        """
        batch = cls._taken(item, argument, names)
        images = batch.images
        if not any(tensor.ndim in (names.rank, VECTORS) for tensor in images.tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in images.tensors)
            raise DataError(
                f"an item of {argument} has shape {shapes}, but fine-tuning needs batches of "
                f"{shape_words(names.rank)}; make them with torch.utils.data.DataLoader(..., batch_size=64)"
            )
        require_examples(images, names, argument)
        require_values(images, argument)
        return batch

    @classmethod
    def _taken(cls, item: Any, argument: str, names: InputNames) -> Batch:
        """Return an item as a batch, unchecked."""
        parts, labels = names.parts(item, argument)
        return cls(Inputs.of([as_tensor(part, argument) for part in parts]), _as_labels(labels), item, names)

    def to(self, weights: Tensor, memory: torch.memory_format) -> Batch:
        """Return the batch on the device of a network's weights, its images in their type and a memory format."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            is_input = leaf.is_floating_point() and any(leaf is tensor for tensor in self.images.tensors)
            leaf = leaf.to(weights.device, weights.dtype if is_input else leaf.dtype, non_blocking=True)
            return leaf.contiguous(memory_format=memory) if leaf.ndim == 4 else leaf

        return self._taken(tree_map(moved, self.item), "data", self.names)


def _as_labels(found: Any) -> Tensor | None:
    if not isinstance(found, Tensor):
        return None
    return found if found.is_floating_point() else found.long()


class Source:
    """Data as checked batches, of which each process gets its own rows.

    Args:
        data: a DataLoader, or another iterable of batches that can be read repeatedly.
        argument: the user's name for the data, for messages.
        processes: the processes that share the batches.
        least: batches with fewer images are skipped.
        seed: seed of each epoch's order, where it is random.
        names: names of the network's inputs.
    """

    def __init__(
        self,
        data: Iterable[Any],
        argument: str,
        processes: Processes,
        least: int,
        seed: int,
        names: InputNames = ONE_IMAGE,
    ) -> None:
        self._names = names
        self._argument = argument
        self._processes = processes
        self._least = least
        self._seed = seed
        self._data = _shared_out(data, argument, processes, least)
        self._shapes: list[torch.Size] | None = None
        self._length: int | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch; data without a length are read once to count them.

        The length of data other than a DataLoader includes skipped batches.

        Raises:
            DataError: there is no batch.
        """
        if self._length is None:
            self._length = self._counted()
        if self._length == 0:
            raise self._empty()
        return self._length

    def first(self, count: int) -> list[Batch]:
        """Return up to `count` first batches of the first epoch, without reading the rest of the data.

        Raises:
            DataError: there is no batch, or as for `epoch`.
        """
        found = list(itertools.islice(self._used(0), count))
        if not found:
            raise self._empty()
        return found

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch `start` on.

        Random numbers depend on the seed, the epoch and the batch's number, so an epoch resumed in the middle has equal
        batches. Batches beyond the length of the first epoch are left out.

        Raises:
            DataError: an item holds no images or images of another shape, there are fewer batches than before, or all
                are skipped.
        """
        done = used = 0
        told = _order_of(self._data) is None and told_length(self._data) is not None
        for batch in itertools.islice(self._batches(number) if told else self._used(number), len(self)):
            done += 1
            if batch is None:
                continue
            used += 1
            if used > start:
                yield batch
        if done and not used:
            raise self._empty()
        if done < len(self):
            raise DataError(
                f"{self._argument} ended after {done} batches in epoch {number + 1}, but an epoch has {len(self)}; "
                "give data with equally many batches each time"
            )

    def digest(self) -> str:
        """Return a hash of the number of batches and of the first batch, equal for any number of processes.

        Where two readings of that batch differ, by random numbers that no seed reaches, only the number counts.
        """
        one, other = fingerprint(self._whole_first()), fingerprint(self._whole_first())
        return f"{len(self)} {one if one == other else 'drawn anew'}"

    def _whole_first(self) -> Any:
        """Return the whole first item of the first epoch."""
        data = self._data
        with entered(data, self._seed, 0):
            order = _order_of(data)
            if isinstance(data, DataLoader) and order is not None:
                first = next(iter(order.batches if isinstance(order, _Shares) else order), None)
                data = loader_like(data, data.dataset, batch_sampler=[] if first is None else [first])
            return next(iter(data), None)

    def _used(self, number: int) -> Iterator[Batch]:
        return (batch for batch in self._batches(number) if batch is not None)

    def _batches(self, number: int) -> Iterator[Batch | None]:
        """Yield the batches of an epoch, with None for skipped ones."""
        with entered(self._data, self._seed, number):
            items = iter(self._data)  # workers draw their seeds and the order here
            for index in itertools.count():
                seed_everything(self._seed, number, index)
                try:
                    item = next(items)
                except StopIteration:
                    return
                yield self._checked(item)

    def _checked(self, item: Any) -> Batch | None:
        batch = Batch.of(item, self._argument, self._names)
        shapes = [tensor.shape[1:] for tensor in batch.images.tensors]
        self._shapes = self._shapes or shapes
        for shape, before in zip(shapes, self._shapes, strict=True):
            if shape == before:
                continue
            raise DataError(
                f"{self._argument} holds images of shape {tuple(shape)} after images of {tuple(before)}; "
                "resize them to one shape, for example with torchvision's Resize"
            )
        if isinstance(self._data, DataLoader) and isinstance(self._data.batch_sampler, _Shares):
            return batch
        if len(batch) < self._least:
            return None
        return Batch.of(self._processes.share(item, len(batch)), self._argument, self._names)

    def _empty(self) -> DataError:
        few = f" of {self._least} images or more" if self._least > 1 else ""
        return DataError(f"{self._argument} holds no batch{few}; pass data with more images, or larger batches")

    def _counted(self) -> int:
        order = _order_of(self._data)
        if order is not None:
            with entered(self._data, self._seed, 0):
                return sum(isinstance(order, _Shares) or len(indices) >= self._least for indices in order)
        told = told_length(self._data)
        return sum(1 for _ in self._used(0)) if told is None else told


class _Shares:
    """Batches of indices, cut to the rows of one process."""

    def __init__(self, batches: Iterable[Sequence[Any]], processes: Processes, least: int) -> None:
        self.batches = batches
        self._processes = processes
        self._least = least

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            if len(batch) >= self._least:
                yield list(batch)[self._processes.rank :: self._processes.count]


def _shared_out(data: Iterable[Any], argument: str, processes: Processes, least: int) -> Iterable[Any]:
    """Return data of which each process loads only its own rows, where possible."""
    order = _order_of(data)
    if processes.count == 1 or order is None or not isinstance(data, DataLoader):
        return data
    if isinstance(data.sampler, DistributedSampler):
        raise DataError(
            f"{argument} has a DistributedSampler, but fine-tuning itself shares each batch among the processes; pass "
            "a DataLoader with shuffle=True, as for one process"
        )
    if least < processes.count:
        with entered(data, 0, 0):
            if any(len(batch) < processes.count for batch in order):
                return data  # no loader loads an empty share, so each process cuts its rows from whole batches
    return loader_like(data, data.dataset, batch_sampler=_Shares(order, processes, max(least, processes.count)))


def _order_of(data: Iterable[Any]) -> Iterable[Sequence[Any]] | None:
    """Return the batches of indices that a loader draws; None for streams and all other data."""
    return None if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset) else data.batch_sampler


def told_length(data: Any) -> int | None:
    """Return the number of batches by the data's length; None without one, and for streams, whose length is a guess."""
    if isinstance(data, DataLoader) and isinstance(data.dataset, IterableDataset):
        return None
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def loader_like(loader: DataLoader[Any], dataset: Dataset[Any], **batching: Any) -> DataLoader[Any]:
    """Return a loader with the settings of another, for other data or other batches."""
    return DataLoader(
        dataset, num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        timeout=loader.timeout, worker_init_fn=loader.worker_init_fn, generator=loader.generator,
        multiprocessing_context=loader.multiprocessing_context, prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers, **batching,
    )  # fmt: skip
