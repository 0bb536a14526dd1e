"""Inputs in one file, as NumPy or PyTorch saved them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from depthcomp.errors import DataError
from depthcomp_errors.first_line import first_line

__all__ = ["is_array_file", "saved_inputs"]


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the ending of a file of arrays: .npy or .pt."""
    return Path(path).suffix in _READERS


def saved_inputs(path: str | os.PathLike[str]) -> Tensor | TensorDataset:
    """Return the inputs in a file: a tensor (n, ...), or inputs with a label for each where the file holds (x, y).

    No code in the file is run.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        found = _READERS[Path(path).suffix](Path(path))
    except Exception as error:  # NumPy, PyTorch and the file system raise errors of many types
        raise DataError(
            f"{path} cannot be read ({first_line(error)}); give a file that numpy.save wrote of an array, or "
            "torch.save of a tensor or a tuple (inputs, labels)"
        ) from error
    parts = found if isinstance(found, tuple | list) else (found,)
    if not parts or not all(isinstance(part, Tensor) and part.ndim for part in parts) or len({*map(len, parts)}) > 1:
        raise DataError(f"{path} holds no array of inputs, nor (inputs, labels) of equal length; save one of these")
    return parts[0] if len(parts) == 1 else TensorDataset(*parts)


def _read_numpy(path: Path) -> Any:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: Mapping[str, Callable[[Path], Any]] = {".npy": _read_numpy, ".pt": _read_torch}
