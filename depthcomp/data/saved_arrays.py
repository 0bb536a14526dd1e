"""Files of arrays: one array of inputs, inputs with labels, or inputs and labels by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from depthcomp.data.named_arrays import NamedArrays
from depthcomp.errors import DataError
from depthcomp_errors.first_line import first_line

__all__ = ["is_array_file", "read_arrays"]


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the ending of a file of arrays: .npy, .npz, .pt, .pth or .safetensors."""
    return Path(path).suffix in _READERS


def read_arrays(path: str | os.PathLike[str]) -> Tensor | TensorDataset | NamedArrays:
    """Return what a file holds, with an example in each row; no code in the file is run.

    That is a tensor of inputs (n, ...), or (inputs, labels) as a data set of pairs, or arrays by name as a data set of
    dicts.

    Raises:
        DataError: the file does not exist, cannot be read, or holds something else.
    """
    if not Path(path).is_file():
        raise DataError(f"the file of arrays {path} does not exist; check the path")
    try:
        found = _READERS[Path(path).suffix](Path(path))
    except Exception as error:  # each library raises errors of its own
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); save arrays to it, without objects: "
            "numpy.save, numpy.savez, torch.save of tensors, or safetensors.torch.save_file"
        ) from error
    if isinstance(found, Mapping):
        return _named(path, found)
    parts = found if isinstance(found, tuple | list) else (found,)
    if not parts or not all(isinstance(part, Tensor) and part.ndim for part in parts) or len({*map(len, parts)}) > 1:
        raise DataError(
            f"{path} holds no array of inputs, no (inputs, labels) of equal length and no arrays by name; save one of "
            "these"
        )
    return parts[0] if len(parts) == 1 else TensorDataset(*parts)


def _named(path: str | os.PathLike[str], found: Mapping[Any, Any]) -> NamedArrays:
    if not all(isinstance(each, Tensor | np.ndarray) for each in found.values()):
        raise DataError(f"{path} holds something other than arrays by name; save a dict of tensors to it")
    return NamedArrays(found)


def _read_npy(path: Path) -> Any:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".npy": _read_npy, ".npz": _read_npz, ".pt": _read_torch, ".pth": _read_torch,
    ".safetensors": safetensors.torch.load_file,
}  # fmt: skip
