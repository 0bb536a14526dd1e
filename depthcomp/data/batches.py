"""Users' data as checked batches of images, and synthetic images where there are none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from depthcomp.data.input_kind import IMAGES, VECTORS, shape_words
from depthcomp.errors import DataError, DepthCompError
from depthcomp_errors.first_line import first_line

__all__ = [
    "Data",
    "LabelledImages",
    "batch_size",
    "calibration_batches",
    "enough_images",
    "first_images",
    "images_of",
    "in_batches",
    "items_of",
    "labelled_images",
    "labels_of",
    "require_values",
    "synthetic_batches",
]

PIXELS = 224 * 224  # the image size for these numbers; they are larger for smaller images
MAX_IMAGES, MAX_SMALL_IMAGES = 512, 4096  # enough for the fits; more only costs time
BATCH_SIZE, SMALL_BATCH_SIZE = 8, 64  # small, as many tensors of a whole network are in memory at once
IMAGE_NAMES = ("image", "images", "pixel_values", "x")  # in a dict; else the tensor of most dimensions
LABEL_NAMES = ("label", "labels", "target", "targets", "y")  # in a dict
ROUNDING = 0.01  # the sum of an image's class shares may miss 1 by this much, as in half precision
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Data = Iterable[Any] | Dataset[Any]
"""A DataLoader, a Dataset, or another iterable of x, (x, y) or dicts."""
_EMPTY = "{argument} holds no images; pass an iterable of x, (x, y) or dicts with at least one image"


def calibration_batches(data: Data, example: Tensor, *, argument: str = "data") -> list[Tensor]:
    """Return up to 512 images of `data` in batches of at most 8, shaped, typed and placed like `example`.

    Arguments and errors are those of `labelled_images`; labels are dropped.
    """
    return in_batches(labelled_images(data, example, argument=argument).images)


class LabelledImages(NamedTuple):
    """Images and what is known of them.

    Attributes:
        images: images (n, c, h, w).
        labels: their classes (n,); None where there are none.
        targets: shape of the numbers to predict that come with each image: real values that are no shares of classes;
            None where there are none.
    """

    images: Tensor
    labels: Tensor | None
    targets: tuple[int, ...] | None


def labelled_images(data: Data, example: Tensor, *, argument: str = "data", most: int = MAX_IMAGES) -> LabelledImages:
    """Return images of `data` (n, c, h, w), typed and placed like `example`, and their classes (n,) where known.

    Args:
        data: a DataLoader, a Dataset, any iterable of x, (x, y) or dicts, or a tensor of images. x is a batch
            (n, c, h, w) or one image (c, h, w); y holds its integer classes, (n,), or one number for one image. In a
            dict, x is `image`, `images`, `pixel_values` or `x`, else the tensor of most dimensions; y is `label`,
            `labels`, `target`, `targets` or `y`. Any other y is ignored.
        example: the model's example input, (n, c, h, w).
        argument: the caller's name for `data`, for the messages.
        most: most images to read.

    Raises:
        DataError: there are no images, or they have another shape than the example, integers or values that are not
            finite; only some items have classes, or not one for each image; `data` raises an error.
    """
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    targets = set[tuple[int, ...] | None]()
    count = 0
    for item in items_of(data, argument, most):
        batch = _checked(images_of(item, argument), example, argument)
        images.append(batch.to(example.device, example.dtype))
        labels.append(_labels(item, len(batch), argument))
        targets.add(_shape_of_targets(labels_of(item), len(batch)))
        count += len(batch)
        if count >= most:
            break
    if not count:
        raise DataError(_EMPTY.format(argument=argument))
    shapes = targets - {None}  # what looks like a share may be a target: [1, 0, 0] beside [1, 0, 1]
    shape = shapes.pop() if len(shapes) == 1 else None
    return LabelledImages(torch.cat(images)[:most], _joined(labels, argument, most), shape)


def _shape_of_targets(labels: Any, count: int) -> tuple[int, ...] | None:
    """Return the shape of each image's labels where they are real values, and no shares of classes."""
    if isinstance(labels, np.ndarray) or (isinstance(labels, list) and labels and isinstance(labels[0], float)):
        labels = torch.tensor(labels)
    if not isinstance(labels, Tensor) or not labels.is_floating_point() or not labels.ndim:
        return None
    sums = labels.double().sum(-1)
    are_shares = bool((labels >= 0).all()) and bool(((sums - 1).abs() <= ROUNDING).all())
    if are_shares:
        return None
    one_each = len(labels) == count and (labels.ndim > 1 or count > 1)
    return tuple(labels.shape[1:] if one_each else labels.shape)


def _joined(labels: Sequence[Tensor | None], argument: str, most: int) -> Tensor | None:
    known = [each for each in labels if each is not None]
    if known and len(known) < len(labels):
        raise DataError(
            f"{len(known)} of {len(labels)} items of {argument} have labels; give an integer class for every image, or "
            "images alone"
        )
    return torch.cat(known)[:most] if known else None


def _labels(item: Any, count: int, argument: str) -> Tensor | None:
    """Return the classes of one item's images (n,) on the CPU, or None where it has none."""
    found = labels_of(item)
    if type(found) is int:
        found = torch.tensor(found)
    if not isinstance(found, Tensor) or found.dtype not in _INTEGERS or found.ndim > 1:
        return None  # masks, boxes or mixtures of classes, for another task
    if found.numel() != count:
        raise DataError(
            f"an item of {argument} holds {found.numel()} labels for {count} images; give one class for each image"
        )
    return found.reshape(-1).long().cpu()


def enough_images(example: Tensor) -> int:
    """Return the number of images of an example's size (n, c, h, w) to calibrate on: 512 of 224x224, more if small."""
    return min(max(MAX_IMAGES, MAX_IMAGES * PIXELS // example[0, 0].numel()), MAX_SMALL_IMAGES)


def batch_size(images: Tensor) -> int:
    """Return the number of images of a size (n, c, h, w) in a batch: 8 of 224x224, more of smaller ones."""
    return min(max(BATCH_SIZE, BATCH_SIZE * PIXELS // images[0, 0].numel()), SMALL_BATCH_SIZE)


def labels_of(item: Any) -> Any:
    """Return the labels of an item; None where it has none."""
    if isinstance(item, Mapping):
        return next((item[name] for name in LABEL_NAMES if name in item), None)
    return item[1] if isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 1 else None


def in_batches(images: Tensor, largest: int = BATCH_SIZE) -> list[Tensor]:
    """Return images (n, c, h, w) as batches of at most `largest`, of almost equal size."""
    return list(torch.tensor_split(images, -(-len(images) // largest)))


def first_images(data: Data, rank: int = IMAGES, *, argument: str = "data") -> Tensor:
    """Return the images of the first item with images, as a batch of `rank` dimensions; four of (n, c, h, w).

    Raises:
        DataError: there is no image, or the item holds something other than finite floating-point images.
    """
    for item in items_of(data, argument):
        images = images_of(item, argument)
        images = images.unsqueeze(0) if images.ndim == rank - 1 else images
        if images.ndim != rank:
            raise DataError(
                f"the first item of {argument} has shape {tuple(images.shape)}, but must be a batch of "
                f"{shape_words(rank)}, or one of these; give the model's input with example_inputs where it is another"
            )
        if len(images):
            require_values(images, argument)
            return images
    raise DataError(_EMPTY.format(argument=argument))


def synthetic_batches(example: Tensor, count: int, seed: int) -> list[Tensor]:
    """Return `count` random images with the amplitude spectrum of natural ones (1/f), shaped like `example`.

    Each channel has mean 0 and standard deviation 1, like images normalised for a network. Source of the spectrum:
    Field, Relations between the statistics of natural images, 1987. Signals and volumes have it, too; vectors are white
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *example.shape[1:], generator=generator)
    if noise.ndim > VECTORS:
        shared = torch.randn(count, 1, *example.shape[2:], generator=generator)  # channels of natural images correlate
        noise = _coloured(0.3 * noise + shared)
    return in_batches(noise.to(example.device, example.dtype))


def _coloured(noise: Tensor) -> Tensor:
    """Return white noise (n, c, ...) with the amplitude spectrum 1/f over all but the first two dimensions."""
    axes, size = tuple(range(2, noise.ndim)), noise.shape[2:]
    along = [*map(torch.fft.fftfreq, size[:-1]), torch.fft.rfftfreq(size[-1])]
    frequency = torch.stack(torch.meshgrid(*(each.square() for each in along), indexing="ij")).sum(0).sqrt()
    frequency.view(-1)[0] = torch.inf
    spectrum = torch.fft.rfftn(noise, dim=axes) / frequency.clamp_min(1 / max(size))
    coloured: Tensor = torch.fft.irfftn(spectrum, s=size, dim=axes)
    return coloured / coloured.std(dim=axes, keepdim=True).clamp_min(1e-12)


def items_of(data: Data, argument: str, most: int = MAX_IMAGES) -> Iterator[Any]:
    """Yield the first items of data, as many as `most`.

    Raises:
        DataError: the data are of no kind that is read, or raise an error.
    """
    if isinstance(data, Tensor):
        yield data
        return
    if isinstance(data, Dataset) and not isinstance(data, Iterable):
        data = DataLoader(data, batch_size=None, generator=torch.Generator())  # yields its items, in order
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"{argument} is a {type(data).__name__}; pass a DataLoader, a Dataset or an iterable of x, (x, y) or dicts"
        )
    read = 0
    try:
        for item in itertools.islice(data, most):
            yield item
            read += 1
    except DepthCompError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:  # of a file or a data set's own code
        reason = first_line(error)
        raise DataError(f"{argument} raised an error after {read} items ({reason}); correct the data first") from error


def images_of(item: Any, argument: str) -> Tensor:
    """Return the images of an item, without its labels.

    Raises:
        DataError: the item holds no tensor of images.
    """
    if isinstance(item, Mapping):
        item = {name: _without_numpy(value) for name, value in item.items()}
        tensors = [value for value in item.values() if isinstance(value, Tensor) and value.ndim >= 3]
        named = [item[name] for name in IMAGE_NAMES if isinstance(item.get(name), Tensor)]
        item = max(named or tensors, key=Tensor.dim, default=item)  # masks may have one dimension less than images
    elif isinstance(item, Sequence) and not isinstance(item, str) and item:
        item = item[0]
    item = _without_numpy(item)
    if not isinstance(item, Tensor):
        raise DataError(
            f"an item of {argument} holds a {type(item).__name__}, not a tensor of images; "
            "yield x, (x, y) or a dict with the images as a tensor (torchvision's ToTensor makes one)"
        )
    return item


def _without_numpy(value: Any) -> Any:
    """Return an array of real values as a tensor, and anything else as it is."""
    real = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return torch.from_numpy(value) if real else value


def _checked(batch: Tensor, example: Tensor, argument: str) -> Tensor:
    if batch.ndim == example.ndim - 1:
        batch = batch.unsqueeze(0)
    if batch.ndim != example.ndim or batch.shape[1:] != example.shape[1:]:
        raise DataError(
            f"{argument} holds images of shape {tuple(batch.shape[1:])}, but the model was captured for "
            f"{tuple(example.shape[1:])}; resize the data, or give the model their shape with example_inputs or with "
            "input_size in its pretrained_cfg"
        )
    require_values(batch, argument)
    return batch


def require_values(images: Tensor, argument: str) -> None:
    """Refuse images of integers, and images with values that are not finite.

    Raises:
        DataError: the images hold integers, NaN or infinite values.
    """
    if not images.is_floating_point():
        raise DataError(
            f"{argument} holds images of {images.dtype}, but must hold floating-point images, normalised as for "
            "training; make them with torchvision's ToTensor and Normalize"
        )
    if not torch.isfinite(images).all():
        raise DataError(f"{argument} holds NaN or infinite values; clean the data first")
