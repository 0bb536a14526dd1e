"""What users bring as data, as checked batches of images on the model's device; or synthetic images where none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from depthcomp.errors import DataError

__all__ = [
    "calibration_batches",
    "first_images",
    "images_of",
    "in_batches",
    "require_values",
    "synthetic_batches",
]

MAX_IMAGES = 512  # enough for the fits; more only costs time
BATCH_SIZE = 8  # of the tensors of a whole network, many live at once
_EMPTY = "{argument} holds no images; pass an iterable of x, (x, y) or dicts with at least one image"


def calibration_batches(data: Iterable[Any], example: Tensor, *, argument: str = "data") -> list[Tensor]:
    """Return up to 512 images of `data` in batches of at most 8, shaped, typed and placed like `example`.

    Args:
        data: a DataLoader or any iterable of x, (x, y) or dicts; x is a batch (n, c, h, w) or one image (c, h, w).
            Labels are not used. A tensor of images works too.
        example: the model's example input, (n, c, h, w).
        argument: what the caller calls `data`, for the messages.

    Raises:
        DataError: no images, images of another shape than the example's, of integers, or not finite.
    """
    batches: list[Tensor] = []
    images = 0
    for item in _items(data, argument):
        batch = _checked(images_of(item, argument), example, argument)
        batches.append(batch[: MAX_IMAGES - images].to(example.device, example.dtype))
        images += len(batch)
        if images >= MAX_IMAGES:
            break
    if images == 0:
        raise DataError(_EMPTY.format(argument=argument))
    return in_batches(torch.cat(batches))


def in_batches(images: Tensor, largest: int = BATCH_SIZE) -> list[Tensor]:
    """Return images (n, c, h, w) as batches of at most `largest`, as equal as can be."""
    return list(torch.tensor_split(images, -(-len(images) // largest)))


def first_images(data: Iterable[Any], *, argument: str = "data") -> Tensor:
    """Return the images of the first item that has some, as a batch (n, c, h, w).

    Raises:
        DataError: there is none, or the item holds something else than finite floating-point images.
    """
    for item in _items(data, argument):
        images = images_of(item, argument)
        images = images.unsqueeze(0) if images.ndim == 3 else images
        if images.ndim != 4:
            raise DataError(
                f"the first item of {argument} has shape {tuple(images.shape)}, and images are needed: a batch "
                "(n, c, h, w) or one image (c, h, w)"
            )
        if len(images):
            require_values(images, argument)
            return images
    raise DataError(_EMPTY.format(argument=argument))


def synthetic_batches(example: Tensor, count: int, seed: int) -> list[Tensor]:
    """Return `count` random images with the amplitude spectrum of natural ones (1/f), shaped like `example`.

    Each channel has mean 0 and standard deviation 1, as images normalised for a network have. Source of the
    spectrum: Field, Relations between the statistics of natural images, 1987.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = example.shape[1:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (rows.square() + columns.square()).sqrt()
    frequency[0, 0] = torch.inf
    noise = torch.randn(count, channels, height, width, generator=generator)
    shared = torch.randn(count, 1, height, width, generator=generator)  # natural colour channels go together
    spectrum = torch.fft.rfft2(0.3 * noise + shared) / frequency.clamp_min(1 / max(height, width))
    images = torch.fft.irfft2(spectrum, s=(height, width))
    images = images / images.std(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    return in_batches(images.to(example.device, example.dtype))


def _items(data: Iterable[Any], argument: str) -> Iterator[Any]:
    if isinstance(data, Tensor):
        yield data
        return
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"{argument} is a {type(data).__name__}; pass a DataLoader or an iterable of x, (x, y) or dicts"
        )
    yield from itertools.islice(data, MAX_IMAGES)


def images_of(item: Any, argument: str) -> Tensor:
    """Return the images of one item; labels are left behind.

    Raises:
        DataError: there is no tensor where images are needed.
    """
    if isinstance(item, Mapping):
        tensors = [value for value in item.values() if isinstance(value, Tensor) and value.ndim >= 3]
        item = max(tensors, key=Tensor.dim, default=item)  # a batch of masks has a dimension less than its images
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        item = item[0]
    if not isinstance(item, Tensor):
        raise DataError(
            f"an item of {argument} holds a {type(item).__name__} where a tensor of images is needed; "
            "yield x, (x, y) or a dict with the images as a tensor (torchvision's ToTensor makes one)"
        )
    return item


def _checked(batch: Tensor, example: Tensor, argument: str) -> Tensor:
    if batch.ndim == example.ndim - 1:
        batch = batch.unsqueeze(0)
    if batch.ndim != example.ndim or batch.shape[1:] != example.shape[1:]:
        raise DataError(
            f"{argument} holds images of shape {tuple(batch.shape[1:])}, and the model was captured for "
            f"{tuple(example.shape[1:])}; resize the data, or pass example_inputs of the data's shape"
        )
    require_values(batch, argument)
    return batch


def require_values(images: Tensor, argument: str) -> None:
    """Refuse images of integers, and those that are not finite.

    Raises:
        DataError: they are.
    """
    if not images.is_floating_point():
        raise DataError(
            f"{argument} holds images of {images.dtype} and must hold floating-point ones, normalised as for training; "
            "torchvision's ToTensor and Normalize make them"
        )
    if not torch.isfinite(images).all():
        raise DataError(f"{argument} holds NaN or infinite values; clean the data first")
