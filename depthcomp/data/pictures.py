"""Pictures in folders, files, PIL images, NumPy arrays and bytes, read as tensors for a network."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import functional

from depthcomp.data.batches import Data, items_of
from depthcomp.data.example import configured_size
from depthcomp.data.images import decode, fitted, fitted_values, image_files, in_turns, mode_of
from depthcomp.data.input_kind import IMAGES, input_rank
from depthcomp.data.items import IMAGE_NAMES
from depthcomp.data.named_arrays import NamedArrays
from depthcomp.data.randomness import own_randomness
from depthcomp.data.saved_arrays import is_array_file, read_arrays
from depthcomp.errors import DataError

__all__ = ["normalization", "readable"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the statistics that torchvision uses


def readable(data: Any, model: nn.Module, example_inputs: Any, argument: str = "data") -> tuple[Data | None, str]:
    """Return data whose images are tensors for a model, and a sentence on what was assumed to read them.

    Data that hold floating-point tensors are returned as they are, with no sentence. A picture is the path of a folder
    or file, a PIL image, a NumPy array or a tensor of bytes; pictures may stand alone, in (x, y), in dicts, and in any
    iterable of these. Pictures are resized and cropped to the model's size, scaled to 0..1 and normalised with the
    model's mean and std. Arrays of real numbers count as normalised; arrays may have their channels last.

    Args:
        data: the data; None for none.
        model: the model, whose `pretrained_cfg` or `default_cfg` is read.
        example_inputs: the user's example input, which gives the size; None for none.
        argument: the caller's name for `data`, for the messages.

    Raises:
        DataError: the data raise an error, the folder or file does not exist, or there is no mean and std for the
            model's channels.
    """
    if isinstance(data, str | os.PathLike):
        data = read_arrays(data) if is_array_file(data) else _files(Path(data))
    if isinstance(data, Mapping):
        data = NamedArrays(data)
    if isinstance(data, np.ndarray) and np.issubdtype(data.dtype, np.str_):
        data = data.ravel().tolist()
    if isinstance(data, Image.Image | np.ndarray) or (isinstance(data, Tensor) and _is_picture(data)):
        data = [data]
    with own_randomness(torch.device("cpu")):  # a Dataset may draw random crops
        first, data = _peeked(data, argument)
    picture = _picture(first)
    if picture is None or (_holds_real_values(picture) and input_rank(model) != IMAGES):
        return data, ""
    reader = _Reader.of(model, example_inputs, picture)
    sentence = "" if _holds_real_values(picture) else reader.sentence
    if isinstance(data, Iterator):
        return map(reader.item, data), sentence
    return (_ReadItems if _is_indexed(data) else _ReadStream)(data, reader), sentence


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation by channel to normalise images for `model`.

    They come from the model's `pretrained_cfg` or `default_cfg`, else from ImageNet.
    """
    return _own_statistics(model) or (IMAGENET_MEAN, IMAGENET_STD)


def _own_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation by channel that a model names; None where it names none."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None) or {}
        if config.get("mean") is not None and config.get("std") is not None:
            return tuple(config["mean"]), tuple(config["std"])
    return None


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else in_turns(image_files(path))


def _peeked(data: Any, argument: str) -> tuple[Any, Any]:
    """Return the first item, None where there is none, and data that still yield it.

    A DataLoader gives the first item of its Dataset, or none where a function of the user's makes the batches.
    """
    if data is None:
        return None, None
    if isinstance(data, DataLoader):
        plain = data.collate_fn is default_collate and _is_indexed(data.dataset)
        return (_peeked(data.dataset, argument)[0] if plain else None), data
    ahead = data
    if isinstance(data, Iterator):
        data, ahead = itertools.tee(data)
    return next(items_of(ahead, argument, 1), None), data


def _is_indexed(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, DataLoader | Mapping)


def _is_picture(value: Any) -> bool:
    """Say whether a value is an image, or a batch of images, that is no tensor of real numbers."""
    if isinstance(value, Tensor):
        return value.dtype == torch.uint8 and value.ndim >= 3
    return _is_batch(value) or isinstance(value, np.ndarray | Image.Image | os.PathLike | str)


def _is_batch(value: Any) -> bool:
    """Say whether a value is a list of pictures, as a DataLoader makes of paths."""
    each = isinstance(value, list | tuple) and len(value)
    return bool(each) and all(isinstance(part, Image.Image | os.PathLike | str) for part in value)


def _holds_real_values(picture: Any) -> bool:
    return isinstance(picture, np.ndarray) and np.issubdtype(picture.dtype, np.floating)


def _picture(item: Any) -> Any:
    """Return the picture of an item, or None where it holds none."""
    if isinstance(item, Mapping):
        named = [item[name] for name in IMAGE_NAMES if name in item]
        item = next(iter(named), None)
    elif isinstance(item, Sequence) and not isinstance(item, str) and not _is_batch(item) and len(item):
        item = item[0]
    return item if _is_picture(item) else None


@dataclass(frozen=True, slots=True)
class _Reader:
    """What turns pictures into tensors for a model.

    Attributes:
        mode: PIL's mode, "L" or "RGB".
        size: height and width; None to leave arrays as large as they are.
        mean: mean by channel, of values from 0 to 1.
        std: standard deviation by channel, likewise.
        configured: whether mean and std are the model's own.
    """

    mode: str
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    configured: bool

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, picture: Any) -> _Reader:
        """Return the reader for a model, and for data like a picture."""
        example = example_inputs[0] if isinstance(example_inputs, Sequence) and example_inputs else example_inputs
        given = tuple(example.shape[-3:]) if isinstance(example, Tensor) and example.ndim >= 3 else None
        (channels, *size), guess = (given, "") if given else configured_size(model)
        own = _own_statistics(model)
        mean, std = own or (IMAGENET_MEAN, IMAGENET_STD)
        remedy = 'set model.pretrained_cfg = {"mean": ..., "std": ...}, or pass normalised tensors'
        mode = mode_of(channels, mean, std, remedy=remedy)
        free = guess and isinstance(picture, Tensor | np.ndarray)
        return cls(mode, None if free else (size[0], size[1]), mean, std, own is not None)

    @property
    def sentence(self) -> str:
        """What was assumed, for the user."""
        size = "" if self.size is None else f" resized and cropped to {self.size[0]}x{self.size[1]},"
        whose = "the model's" if self.configured else "ImageNet's, as the model has no pretrained_cfg:"
        return (
            f"pictures were read as {self.mode},{size} and normalised with {whose} mean {self.mean} and std {self.std}"
        )

    def item(self, item: Any) -> Any:
        """Return an item with its picture read.

        Raises:
            DataError: the item holds no picture that can be read.
        """
        if isinstance(item, Mapping):
            name = next((name for name in IMAGE_NAMES if name in item), None)
            if name is None:
                raise DataError(
                    f"an item of the data has no {' or '.join(IMAGE_NAMES)}, but {', '.join(map(str, item))}"
                )
            return {**item, name: self.read(item[name])}
        if isinstance(item, Sequence) and not isinstance(item, str) and not _is_batch(item) and len(item):
            return (self.read(item[0]), *item[1:])
        return self.read(item)

    def read(self, picture: Any) -> Tensor:
        """Return a picture as a tensor (c, h, w), or several as (n, c, h, w)."""
        if _is_batch(picture):
            return torch.stack([self.read(part) for part in picture])
        if isinstance(picture, str | os.PathLike):
            picture = decode(Path(picture), self.mode)
        if isinstance(picture, Image.Image):
            picture = picture.convert(self.mode)
            if self.size not in (None, (picture.height, picture.width)):
                picture = fitted(picture, self.size)
            return self._normalised(functional.to_tensor(picture))
        if not isinstance(picture, np.ndarray | Tensor):
            raise DataError(
                f"an item of the data holds a {type(picture).__name__}; give paths, PIL images, arrays or tensors"
            )
        values = self._channels_first(
            torch.as_tensor(np.array(picture)) if isinstance(picture, np.ndarray) else picture
        )
        if values.is_floating_point():
            return values.float()
        if values.dtype != torch.uint8:
            raise DataError(
                f"the data hold an array of {values.dtype}; give bytes (uint8, 0 to 255), or real numbers normalised "
                "as for training"
            )
        values = values if self.size is None else fitted_values(values, self.size)
        return self._normalised(values.float() / 255)

    def _channels_first(self, values: Tensor) -> Tensor:
        """Return an array with its channels before height and width; of one channel it may have no dimension for it.

        Raises:
            DataError: it has other channels than the model takes.
        """
        channels = len(self.mean)
        if values.ndim >= 3 and values.shape[-1] == channels and values.shape[-3] != channels:
            values = values.movedim(-1, -3)
        elif channels == 1 and (values.ndim == 2 or (values.ndim == 3 and len(values) != 1)):
            values = values.unsqueeze(-3)
        if values.ndim not in (3, 4) or values.shape[-3] != channels:
            raise DataError(
                f"the data hold an array of shape {tuple(values.shape)}, but the model takes {channels} channels; give "
                "(h, w, c) or (c, h, w), or batches of these"
            )
        return values

    def _normalised(self, values: Tensor) -> Tensor:
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (values - mean) / std


class _ReadItems(Dataset[Any]):
    """Items that are read when they are asked for."""

    def __init__(self, data: Any, reader: _Reader) -> None:
        self._data, self._reader = data, reader

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._reader.item(self._data[index])


class _ReadStream:
    """An iterable whose items are read one after the other."""

    def __init__(self, data: Iterable[Any], reader: _Reader) -> None:
        self._data, self._reader = data, reader

    def __iter__(self) -> Iterator[Any]:
        return map(self._reader.item, self._data)
