"""What a measuring backend must offer."""

from collections.abc import Callable
from typing import Protocol

from latency_tables.environment import Environment

__all__ = ["Backend", "Progress", "Runner"]

Progress = Callable[[int, int, str], None]
"""Called as (done, total, what) after each piece of work."""


class Runner(Protocol):
    """A model that is ready to run on random inputs."""

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together."""
        ...

    def close(self) -> None:
        """Release the model; the runner is not used again."""
        ...


class Backend(Protocol):
    """A library that runs ONNX models on a device."""

    @property
    def name(self) -> str:
        """The name by which `latency_tables.backends.create_backend` knows it."""
        ...

    def environment(self) -> Environment:
        """Return where this backend measures."""
        ...

    def build(self, onnx_model: bytes) -> Runner:
        """Return a runner for a serialised ONNX model with static shapes.

        Raises:
            MissingPackageError: the library is not installed.
            BackendUnavailableError: the library cannot use its device.
            TableError: the library refuses the model.
        """
        ...
