"""Sources of batches to train and to validate on, from users' data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.named_arrays import NamedArrays
from depthcomp.errors import DataError
from depthcomp.training.batches import Source, loader_like, told_length
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes

__all__ = ["require_repeatable", "set_apart", "sources"]

_MENDED = "pass a DataLoader, a Dataset or a list of batches"


def require_repeatable(data: object, argument: str) -> None:
    """Refuse data that can be read only once.

    Raises:
        DataError: they are an iterator, or cannot be iterated over.
    """
    if isinstance(data, Iterator):
        raise DataError(
            f"{argument} is a {type(data).__name__}, which can be read once, but fine-tuning reads it every epoch; "
            f"{_MENDED}"
        )
    if not isinstance(data, Iterable | Dataset) or isinstance(data, str | bytes):
        raise DataError(f"{argument} is a {type(data).__name__}; {_MENDED}")


def sources(
    train: Any,
    val: Any,
    config: FinetuneConfig,
    processes: Processes,
    *,
    normed: bool = True,
    names: InputNames = ONE_IMAGE,
) -> tuple[Source, Source]:
    """Return the sources to train and to validate on, in batches of `names.rank` dimensions.

    With batch norms (`normed`), batches of one image are skipped. Without validation data, a part of the training data
    validates. From a Dataset, a tensor, or a DataLoader in order or shuffled, the seed draws images. From other data,
    every n-th batch is taken, so their order must be equal each time. Neighbours may be separated: pass validation data
    where they are alike, for example frames of one film. `names` are those of the network's inputs.

    Raises:
        DataError: the data cannot be read twice, or cannot be split.
    """
    require_repeatable(train, "data")
    loader = _loader(train, config, shuffled=True)
    if val is None:
        loader, judging = set_apart(loader, config)
    else:
        require_repeatable(val, "val_data")
        judging = _loader(val, config, shuffled=False)
    least = processes.count * (2 if normed else 1)  # a norm needs two values to normalise
    return (
        Source(loader, "data", processes, least, config.seed, names),
        Source(judging, "data" if val is None else "val_data", processes, 1, config.seed, names),
    )


def _loader(data: Any, config: FinetuneConfig, *, shuffled: bool) -> Iterable[Any]:
    """Return data in batches; tensors of images (n, c, h, w) and Datasets get the configured batch size.

    Workers start anew each epoch: persistent ones would keep drawing random numbers, which a resumed training lacks.
    """
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if isinstance(data, Mapping):
        data = NamedArrays(data)
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset):
        if isinstance(data, DataLoader) and data.persistent_workers:
            data = copy.copy(data)
            object.__setattr__(data, "persistent_workers", False)  # DataLoader forbids setting it
        found: Iterable[Any] = data
        return found
    return DataLoader(data, batch_size=config.batch_size, shuffle=shuffled, num_workers=config.workers)


def set_apart(
    loader: Iterable[Any], config: FinetuneConfig, *, plain: Iterable[Any] | None = None
) -> tuple[Iterable[Any], Iterable[Any]]:
    """Split data into a part to train on and a part to validate on.

    Args:
        loader: the data, in batches.
        config: its `val_share` and `seed` choose the part to validate on.
        plain: the images without random changes, in equal order, to validate on where `loader` changes them at random.

    Raises:
        DataError: there are too few images, or their order cannot be split.
    """
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        step = max(2, round(1 / config.val_share))
        return _Part(loader, step, held=False), _Part(loader, step, held=True)
    sampler = loader.sampler
    if not _takes_each_once(sampler) or type(loader.batch_sampler) is not BatchSampler:
        raise DataError(
            f"data is drawn by a {type(sampler).__name__} that does not take each image once, so it cannot be split; "
            "pass val_data=, or a DataLoader with shuffle=True"
        )
    shuffled = isinstance(sampler, RandomSampler)
    size = len(sampler)
    count = max(1, round(config.val_share * size))
    if count >= size:
        raise DataError(f"data holds {size} images, too few to validate on a part of them; pass val_data=")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(config.seed)).tolist()
    held, kept = sorted(order[:count]), sorted(order[count:])
    judged = plain if isinstance(plain, DataLoader) else loader
    batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    return (
        loader_like(loader, Subset(loader.dataset, kept), shuffle=shuffled, **batching),
        loader_like(loader, Subset(judged.dataset, held), shuffle=False, batch_size=loader.batch_size),
    )


def _takes_each_once(sampler: object) -> TypeGuard[RandomSampler | SequentialSampler]:
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return isinstance(sampler, SequentialSampler)


class _Part:
    """Every n-th batch of the data, or all others."""

    def __init__(self, data: Iterable[Any], step: int, *, held: bool) -> None:
        self._data = data
        self._step = step
        self._held = held

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the data that decides their order: sampler, generator or set_epoch."""
        return getattr(self._data, name)

    def __len__(self) -> int:
        count = told_length(self._data)
        if count is None:
            raise TypeError("the data have no length")
        held = len(range(1, count, self._step))
        return held if self._held else count - held

    def __iter__(self) -> Iterator[Any]:
        return (item for index, item in enumerate(self._data) if (index % self._step == 1) is self._held)
