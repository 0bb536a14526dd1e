"""Names of the channels along one axis of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ids", "Layout", "Layouts", "layouts_in"]

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The channels of a tensor.

    Attributes:
        axis: the axis of the channels.
        ids: the id of each channel along it; equal ids are the same channel.
    """

    axis: int
    ids: Ids


Layouts: TypeAlias = "Layout | tuple[Layouts, ...] | None"
"""The channels of a node's result: of one tensor, or of each of several; None where they are not known."""


def layouts_in(found: Iterable[Layouts]) -> Iterator[Layout]:
    """Yield all layouts, also those of the parts of results."""
    for each in found:
        if isinstance(each, Layout):
            yield each
        elif each is not None:
            yield from layouts_in(each)
