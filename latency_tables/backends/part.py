"""Runners for a part of a network on a CPU, with the caches as the part finds them inside the network.

An operator that is run again and again finds its weights in the nearest cache. In a network all other operators ran
since its last turn: its weights come from further away, while its input was written just before and its output goes
to memory that was used a moment ago.
"""

import functools
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latency_tables.backends.protocol import Runner

__all__ = ["SWEPT_BYTES", "ArrayRunner", "PartRunner"]

SWEPT_BYTES = 12 * 2**20  # about the weights of a small network, such as MobileNetV2


class ArrayRunner(Runner, Protocol):
    """A runner whose model reads and writes these arrays."""

    inputs: list[NDArray[Any]]
    outputs: list[NDArray[Any]]


class PartRunner:
    """A runner of a part of a network.

    Args:
        runner: runs it.
        idle: runs all but nothing in the same library.
        layout_share: share of its time that goes into layout changes, from 0 to 1.
    """

    def __init__(self, runner: ArrayRunner, idle: Runner, layout_share: float = 0.0) -> None:
        self.layout_share = layout_share
        self._runner = runner
        self._idle = idle

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together."""
        return self._runner.time_ms(inner)

    def restore_caches(self) -> None:
        """Bring the caches to the state of a network: sweep out what is there, then touch outputs and inputs.

        No value changes. What comes in by a skip, the further inputs, was written before the output was last used. The
        library's own code, which a network keeps going through, is called in between. With several threads, of the
        caches that cores do not share only the calling one's is swept.
        """
        inputs, swept = self._runner.inputs, _swept()
        swept += 0
        self._idle.time_ms(1)
        for values in (*inputs[1:], *self._runner.outputs, *inputs[:1]):
            values += 0

    def close(self) -> None:
        """Release what runs it."""
        self._runner.close()


@functools.cache
def _swept() -> NDArray[Any]:
    return np.zeros(SWEPT_BYTES // 4, np.float32)
