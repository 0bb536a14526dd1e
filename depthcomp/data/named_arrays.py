"""Arrays of several inputs and labels by name, as a data set of dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from depthcomp.errors import DataError
from depthcomp_errors.first_line import first_line

__all__ = ["NamedArrays"]


class NamedArrays(Dataset[dict[str, Tensor]]):
    """Rows of arrays that hold one example of each input, or one label, in each row.

    Args:
        arrays: arrays or tensors by name.

    Raises:
        DataError: there is no array, one holds no numbers, or they have different numbers of rows.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._tensors = {name: _tensor(name, array) for name, array in arrays.items()}
        counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in self._tensors.items()}
        if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
            rows = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(
                f"the arrays have different numbers of rows, or none ({rows}); give one row for each example"
            )

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._tensors.items()}


def _tensor(name: str, array: Any) -> Tensor:
    try:
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the data hold a {type(array).__name__} as {name}, which holds no numbers ({first_line(error)}); give "
            "a dict of arrays with one row for each example, or an iterable of items"
        ) from error
