"""Inputs and outputs of a model that can be measured: float32 with static shapes."""

from collections.abc import Sequence

from depthcomp_errors import TableError

__all__ = ["FLOAT32", "require_measurable"]

FLOAT32 = "float32"


def require_measurable(name: str, dtype: str, shape: Sequence[object]) -> tuple[int, ...]:
    """Return the shape of an input or output.

    Args:
        name: its name, for the message.
        dtype: its type in the library's own words, or `FLOAT32`.
        shape: its lengths; one that is no integer is dynamic.

    Raises:
        TableError: it is not float32, or not static.
    """
    static = tuple(length for length in shape if isinstance(length, int))
    if dtype != FLOAT32 or len(static) < len(shape):
        raise TableError(
            f"tensor {name!r} of the model is {dtype} with shape {list(shape)}; measuring needs float32 with a static"
            " shape, so export the model with fixed input sizes."
        )
    return static
