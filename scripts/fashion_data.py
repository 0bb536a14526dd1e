"""Fashion-MNIST as tensors: a part to train on, a part to choose by, and the official test part, for the end."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import FashionMNIST

__all__ = ["Batches", "Part", "Parts", "fashion_mnist"]

MEAN, STD = 0.2860, 0.3530  # of the training pixels in 0..1
VALIDATION = 5000  # images cut from the official training part, the same ones always
SPLIT_SEED = 0
SHIFT = 2  # pixels, at most, in each direction
DEBIAN = Path("usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist keeps its files


@dataclass(frozen=True, slots=True)
class Part:
    """Images (n, 1, 28, 28), normalised, and their labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int | None) -> Part:
        """Return the first `count` of them, all where there is no count."""
        return Part(self.images[:count], self.labels[:count])


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts; nothing is chosen or trained on `test`."""

    train: Part
    validation: Part
    test: Part

    def first(self, count: int | None) -> Parts:
        """Return the first `count` images of each part."""
        return Parts(self.train.first(count), self.validation.first(count), self.test.first(count))


def fashion_mnist(root: Path) -> Parts:
    """Return the data under a folder, which torchvision fills by a download where they are not there.

    Args:
        root: a folder of torchvision's, the root of an unpacked Debian package, or the folder with the four .gz files.
    """
    folder = next((place for place in (root / DEBIAN, root) if any(place.glob("train-images*.gz"))), None)
    if folder is None:
        sets = [FashionMNIST(root, train=train, download=True) for train in (True, False)]
        official, test = (_part(found.data, found.targets) for found in sets)
    else:
        official, test = (_part(*_read(folder, name)) for name in ("train", "t10k"))
    order = torch.randperm(len(official), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen, rest = order[:VALIDATION], order[VALIDATION:]
    return Parts(_taken(official, rest), _taken(official, chosen), test)


def _read(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{name}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=header)
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return torch.from_numpy(pixels.reshape(-1, 28, 28).copy()), torch.from_numpy(labels.astype(np.int64))


def _part(pixels: Tensor, labels: Tensor) -> Part:
    return Part((pixels[:, None] / 255 - MEAN) / STD, labels)


def _taken(part: Part, indices: Tensor) -> Part:
    return Part(part.images[indices], part.labels[indices])


class Batches:
    """Batches of (images, labels) in random order, shifted by a few pixels and mirrored; each pass draws anew.

    Args:
        part: what is drawn from.
        size: images in a batch; what is left over waits for another pass.
        seed: of the order and the changes, together with the number of the pass.
    """

    def __init__(self, part: Part, size: int, seed: int) -> None:
        self._part, self._size, self._seed = part, min(size, len(part)), seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._part) // self._size

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next pass."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self._seed * 1000 + self._epoch)
        self._epoch += 1
        order = torch.randperm(len(self._part), generator=generator)[: len(self) * self._size]
        for indices in order.split(self._size):
            yield _augmented(self._part.images[indices], generator), self._part.labels[indices]


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, 1, h, w), half of them mirrored, each moved by up to SHIFT pixels, dark pixels coming in."""
    n, _, height, width = images.shape
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    padded = F.pad(torch.where(mirrored, images.flip(3), images), (SHIFT,) * 4, value=-MEAN / STD)
    moves = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = (move + torch.arange(size) for move, size in zip(moves, (height, width), strict=True))
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
