"""Inputs and outputs of a model that can be measured: float32, integers or booleans, with static shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthcomp_errors import TableError

__all__ = ["FLOAT32", "Measurable", "require_measurable"]

FLOAT32 = "float32"
_TYPES = (FLOAT32, "bool", "uint8", "int8", "int16", "int32", "int64")


@dataclass(frozen=True, slots=True)
class Measurable:
    """An input or output that can be measured.

    Attributes:
        shape: its static shape.
        dtype: the name of its type in NumPy and torch.
    """

    shape: tuple[int, ...]
    dtype: str

    def drawn(self, rng: np.random.Generator) -> NDArray[Any]:
        """Return random values that any model takes; integers are 0, as one may be an index."""
        if self.dtype == FLOAT32:
            return rng.standard_normal(self.shape, dtype=np.float32)
        return rng.random(self.shape) < 0.5 if self.dtype == "bool" else self.empty()

    def empty(self) -> NDArray[Any]:
        """Return memory for values."""
        return np.zeros(self.shape, self.dtype)


def require_measurable(name: str, dtype: str, shape: Sequence[object]) -> Measurable:
    """Return the shape and type of an input or output.

    Args:
        name: its name, for the message.
        dtype: its type as NumPy names it, or in the library's own words.
        shape: its lengths; one that is no integer is dynamic.

    Raises:
        TableError: it is of another floating-point type than float32, or not static.
    """
    static = tuple(length for length in shape if isinstance(length, int))
    if dtype not in _TYPES or len(static) < len(shape):
        raise TableError(
            f"tensor {name!r} of the model is {dtype} with shape {list(shape)}; measuring needs float32, integers or"
            " booleans with a static shape, so export the model in float32 with fixed input sizes."
        )
    return Measurable(static, dtype)
