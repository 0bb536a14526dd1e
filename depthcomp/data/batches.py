"""Users' data as checked batches of inputs, and synthetic images where there are none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from depthcomp.data.input_checks import as_batch, as_tensor, require_examples, require_values
from depthcomp.data.input_kind import VECTORS, shape_words
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import DataError, DepthCompError
from depthcomp_errors.first_line import first_line

__all__ = [
    "Data",
    "LabelledImages",
    "batch_size",
    "calibration_batches",
    "enough_images",
    "first_images",
    "in_batches",
    "items_of",
    "labelled_images",
    "synthetic_batches",
]

PIXELS = 224 * 224  # the image size for these numbers; they are larger for smaller images
MAX_IMAGES, MAX_SMALL_IMAGES = 512, 4096  # enough for the fits; more only costs time
BATCH_SIZE, SMALL_BATCH_SIZE = 8, 64  # small, as many tensors of a whole network are in memory at once
ROUNDING = 0.01  # the sum of an image's class shares may miss 1 by this much, as in half precision
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Data = Iterable[Any] | Dataset[Any]
"""A DataLoader, a Dataset, or another iterable of x, (x, y) or dicts."""
_EMPTY = "{argument} holds no images; pass an iterable of x, (x, y) or dicts with at least one image"


def calibration_batches(
    data: Data, example: Tensor | Inputs, *, argument: str = "data", names: InputNames = ONE_IMAGE
) -> list[Inputs]:
    """Return up to 512 images of `data` in batches of at most 8, shaped, typed and placed like `example`.

    Arguments and errors are those of `labelled_images`; labels are dropped.
    """
    return in_batches(labelled_images(data, example, argument=argument, names=names).images)


class LabelledImages(NamedTuple):
    """Images and what is known of them.

    Attributes:
        images: n images, or examples of several inputs.
        labels: their classes (n,); None where there are none.
        targets: shape of the numbers to predict that come with each image: real values that are no shares of classes;
            None where there are none.
    """

    images: Inputs
    labels: Tensor | None
    targets: tuple[int, ...] | None


def labelled_images(
    data: Data,
    example: Tensor | Inputs,
    *,
    argument: str = "data",
    most: int = MAX_IMAGES,
    names: InputNames = ONE_IMAGE,
) -> LabelledImages:
    """Return images of `data` (n, c, h, w), typed and placed like `example`, and their classes (n,) where known.

    Args:
        data: a DataLoader, a Dataset, any iterable of x, (x, y) or dicts, or a tensor of images. x is a batch
            (n, c, h, w) or one image (c, h, w); y holds its integer classes, (n,), or one number for one image. In a
            dict, x is `image`, `images`, `pixel_values` or `x`, else the tensor of most dimensions; y is `label`,
            `labels`, `target`, `targets` or `y`. Any other y is ignored. Several inputs are held as `InputNames` says.
        example: the model's example input, (n, c, h, w), or its example inputs.
        argument: the caller's name for `data`, for the messages.
        most: most images to read.
        names: names of the inputs.

    Raises:
        DataError: there are no images, or they have another shape than the example, integers or values that are not
            finite; only some items have classes, or not one for each image; `data` raises an error.
    """
    images: list[Inputs] = []
    labels: list[Tensor | None] = []
    wanted = Inputs.of(example)
    targets = set[tuple[int, ...] | None]()
    count = 0
    for item in items_of(data, argument, most):
        parts, known = names.parts(item, argument)
        batch = as_batch(parts, wanted, argument, names)
        images.append(batch)
        labels.append(_labels(known, len(batch), argument))
        targets.add(_shape_of_targets(known, len(batch)))
        count += len(batch)
        if count >= most:
            break
    if not count:
        raise DataError(_EMPTY.format(argument=argument))
    shapes = targets - {None}  # what looks like a share may be a target: [1, 0, 0] beside [1, 0, 1]
    shape = shapes.pop() if len(shapes) == 1 else None
    return LabelledImages(Inputs.joined(images)[:most], _joined(labels, argument, most), shape)


def _shape_of_targets(labels: Any, count: int) -> tuple[int, ...] | None:
    """Return the shape of each image's labels where they are real values, and no shares of classes."""
    if isinstance(labels, np.ndarray | list):
        with suppress(TypeError, ValueError, RuntimeError):  # no numbers, or rows of different lengths
            labels = torch.as_tensor(labels)
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


def _labels(found: Any, count: int, argument: str) -> Tensor | None:
    """Return the classes of one item's images (n,) on the CPU, or None where its labels are no classes."""
    if type(found) is int:
        found = torch.tensor(found)
    if not isinstance(found, Tensor) or found.dtype not in _INTEGERS or found.ndim > 1:
        return None  # masks, boxes or mixtures of classes, for another task
    if found.numel() != count:
        raise DataError(
            f"an item of {argument} holds {found.numel()} labels for {count} images; give one class for each image"
        )
    return found.reshape(-1).long().cpu()


def enough_images(example: Tensor | Inputs) -> int:
    """Return the number of images of an example's size (n, c, h, w) to calibrate on: 512 of 224x224, more if small."""
    return min(max(MAX_IMAGES, MAX_IMAGES * PIXELS // Inputs.of(example).pixels), MAX_SMALL_IMAGES)


def batch_size(images: Inputs) -> int:
    """Return the number of images of a size (n, c, h, w) in a batch: 8 of 224x224, more of smaller ones."""
    return min(max(BATCH_SIZE, BATCH_SIZE * PIXELS // images.pixels), SMALL_BATCH_SIZE)


def in_batches(images: Inputs, largest: int = BATCH_SIZE) -> list[Inputs]:
    """Return images (n, c, h, w) as batches of at most `largest`, of almost equal size."""
    return images.split(-(-len(images) // largest))


def first_images(data: Data, *, argument: str = "data", names: InputNames = ONE_IMAGE) -> Inputs:
    """Return the images of the first item with images, as a batch of `names.rank` dimensions; four of (n, c, h, w).

    Raises:
        DataError: there is no image, or the item holds something other than finite floating-point images.
    """
    for item in items_of(data, argument):
        parts = [as_tensor(part, argument) for part in names.parts(item, argument)[0]]
        images = max(parts, key=Tensor.dim)
        if images.ndim == names.rank - 1:
            parts = [part.unsqueeze(0) for part in parts]
        elif images.ndim != names.rank:
            raise DataError(
                f"the first item of {argument} has shape {tuple(images.shape)}, but must be a batch of "
                f"{shape_words(names.rank)}, or one of these; give the model's input with example_inputs where it is "
                "another"
            )
        found = Inputs.of(parts)
        if len(found):
            require_examples(found, names, argument)
            require_values(found, argument)
            return found
    raise DataError(_EMPTY.format(argument=argument))


def synthetic_batches(example: Tensor, count: int, seed: int) -> list[Inputs]:
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
    return in_batches(Inputs.of(noise.to(example.device, example.dtype)))


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
    if isinstance(data, Tensor | Mapping | Inputs):
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
    except Exception as error:  # of a file or a data set's own code
        reason = first_line(error)
        raise DataError(f"{argument} raised an error after {read} items ({reason}); correct the data first") from error
