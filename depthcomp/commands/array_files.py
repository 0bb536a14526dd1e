"""Files of arrays by name: .npz, .pt and .safetensors, read without running code in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from depthcomp.data.named_arrays import NamedArrays
from depthcomp.errors import DataError
from depthcomp_errors.first_line import first_line

__all__ = ["names_arrays", "read_arrays"]


def names_arrays(spec: str) -> bool:
    """Return whether a spec is the path of a file of arrays."""
    return Path(spec).suffix in _READERS


def read_arrays(path: Path) -> NamedArrays:
    """Return the rows of the arrays in a file, as dicts.

    Raises:
        DataError: the file does not exist, holds something else, or its arrays have different numbers of rows.
    """
    if not path.is_file():
        raise DataError(f"the file of arrays {path} does not exist; check the path")
    try:
        found = _READERS[path.suffix](path)
    except Exception as error:  # each library raises errors of its own
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}); save arrays by name to it, without "
            "objects: numpy.savez, torch.save of a dict of tensors, or safetensors.torch.save_file"
        ) from error
    named = isinstance(found, Mapping) and all(isinstance(each, Tensor | np.ndarray) for each in found.values())
    if not named:
        raise DataError(f"{path} holds something other than arrays by name; save a dict of tensors to it")
    return NamedArrays(found)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npz": _read_npz, ".pt": _read_torch, ".pth": _read_torch, ".safetensors": safetensors.torch.load_file,
}  # fmt: skip
