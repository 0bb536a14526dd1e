"""Files of arrays: the inputs of a network, and labels, as NumPy, PyTorch and safetensors save them."""

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
    """Read a file of arrays with one example in each row, which is taken as it is.

    One array is a tensor of inputs. A tuple of tensors is (inputs, labels), or several inputs and labels. Arrays by
    name are inputs by the names of the forward's arguments, and labels as `label`. No code in the file is run.

    Raises:
        DataError: the file does not exist, cannot be read, or holds something else; or its arrays have different
            numbers of rows, or none.
    """
    if not Path(path).is_file():
        raise DataError(f"the file of arrays {path} does not exist; check the path")
    try:
        found = _READERS[Path(path).suffix](Path(path))
    except Exception as error:  # each library raises errors of its own
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); save arrays without objects to it: "
            "numpy.save, numpy.savez, torch.save of tensors, or safetensors.torch.save_file"
        ) from error
    if isinstance(found, Mapping) and all(isinstance(each, Tensor | np.ndarray) for each in found.values()):
        return NamedArrays(found)
    parts = found if isinstance(found, tuple | list) else (found,)
    if not parts or not all(isinstance(part, Tensor) and part.ndim for part in parts) or len({*map(len, parts)}) > 1:
        raise DataError(
            f"{path} holds something other than an array of inputs, (inputs, labels) of equal length, or arrays by "
            "name; save one of these"
        )
    return parts[0] if len(parts) == 1 else TensorDataset(*parts)


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
