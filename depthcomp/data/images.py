"""Folders of image files as batches, resized, cropped and normalised for a network."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from depthcomp.errors import DataError

__all__ = ["decode", "fitted", "fitted_values", "image_batches", "image_files", "in_turns", "mode_of"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
CROP_SHARE = 0.875  # share of the resized image, as ImageNet networks are evaluated: 224 of 256 pixels
_MODES = {1: "L", 3: "RGB"}  # PIL's mode by the number of channels


def image_batches(
    directory: str | os.PathLike[str],
    example: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 16,
) -> Iterator[Tensor]:
    """Return batches (n, c, h, w) of all images in a folder and below, shaped like `example`.

    Images of a folder are sorted by name, and several folders take turns. So with a folder for each class, the first
    few hundred images show all classes. Images are decoded on demand.

    Args:
        directory: a folder with jpg, jpeg, png, bmp or webp files, at any depth; other files are ignored.
        example: the model's example input, (n, c, h, w), with 1 or 3 channels.
        mean: mean by channel, of values from 0 to 1, as in torchvision's Normalize.
        std: standard deviation by channel, likewise.
        batch_size: images in a batch; the last one may hold fewer.

    Raises:
        DataError: the folder is missing or empty, or the channels do not fit; while iterating, a file cannot be
            decoded.

    Example:
        >>> example = torch.zeros(1, 3, 224, 224)
        >>> for batch in image_batches("photos", example, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)):  # doctest: +SKIP
        ...     model(batch)
    """
    channels, height, width = example.shape[1:]
    mode = mode_of(channels, mean, std, remedy="correct the model's pretrained_cfg")
    paths = in_turns(image_files(Path(directory)))
    starts = range(0, len(paths), batch_size)
    load = _Loader(mode, (height, width), list(mean), list(std))
    return (torch.stack([load(path) for path in paths[start : start + batch_size]]) for start in starts)


def mode_of(channels: int, mean: Sequence[float], std: Sequence[float], *, remedy: str) -> str:
    """Return PIL's mode of images with some channels.

    Args:
        channels: number of channels.
        mean: mean by channel.
        std: standard deviation by channel.
        remedy: what the user can do where they do not fit, for the message.

    Raises:
        DataError: no mode has these channels, or mean or std have another number.
    """
    if channels not in _MODES or not len(mean) == len(std) == channels:
        raise DataError(
            f"images need 1 or 3 channels with a mean and a std each, but the model takes {channels} with "
            f"{len(mean)} means and {len(std)} stds; {remedy}"
        )
    return _MODES[channels]


class _Loader:
    """Loader of an image file as a tensor (c, h, w)."""

    def __init__(self, mode: str, size: tuple[int, int], mean: list[float], std: list[float]) -> None:
        self._mode, self._size, self._mean, self._std = mode, size, mean, std

    def __call__(self, path: Path) -> Tensor:
        image = fitted(decode(path, self._mode), self._size)
        tensor: Tensor = functional.normalize(functional.to_tensor(image), self._mean, self._std)
        return tensor


def decode(path: Path, mode: str) -> Image.Image:
    """Return the image in a file, in a mode of PIL.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # PIL raises these for broken files
        raise DataError(f"{path} cannot be decoded as an image: {error}; repair or remove the file") from error


def fitted_values(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of images (..., h, w) at a height and width, as `fitted` does; images of that size stay."""
    height, width = values.shape[-2:]
    if (height, width) == size:
        return values
    scale = max(size[0] / height, size[1] / width) / CROP_SHARE
    scaled = functional.resize(values, [round(height * scale), round(width * scale)], antialias=True)
    cropped: Tensor = functional.center_crop(scaled, list(size))
    return cropped


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle of an image at a height and width: `CROP_SHARE` of its tighter side."""
    scale = max(size[0] / image.height, size[1] / image.width) / CROP_SHARE
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    cropped: Image.Image = functional.center_crop(scaled, list(size))
    return cropped


def image_files(directory: Path) -> list[Path]:
    """Return the images in a folder and below, sorted.

    Raises:
        DataError: the folder does not exist, or holds no image.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise DataError(f"the image folder {directory} {what}; give a folder that holds images")
    paths = [Path(folder, name) for folder, _, names in os.walk(directory, followlinks=True) for name in names]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not images:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        raise DataError(f"the image folder {directory} holds no image; put {kinds} files there or in its sub-folders")
    return sorted(images)


def in_turns(paths: list[Path]) -> list[Path]:
    """Return the first file of each folder, then the second of each, and so on."""
    folders = defaultdict[Path, list[Path]](list)
    for path in paths:
        folders[path.parent].append(path)
    turns = [(turn, path) for names in folders.values() for turn, path in enumerate(names)]
    return [path for _, path in sorted(turns)]
