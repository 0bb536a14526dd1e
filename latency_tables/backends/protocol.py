"""Protocols of a measuring backend, its runners and the subjects that it measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from latency_tables.tables.environment import Environment

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["AnyBackend", "Backend", "ModuleBackend", "Progress", "Runner", "Subject", "runner_of"]

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


@runtime_checkable
class Backend(Protocol):
    """A library that runs ONNX models on a device."""

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


@runtime_checkable
class ModuleBackend(Protocol):
    """A library that runs PyTorch modules on a device, and takes them in place of ONNX models."""

    def environment(self) -> Environment:
        """Return where this backend measures."""
        ...

    def build_module(self, module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Runner:
        """Return a runner for a module in evaluation mode, which is not changed.

        Args:
            module: what to run.
            example_inputs: tell the shapes; the values are random.

        Raises:
            MissingPackageError: the library is not installed.
            BackendUnavailableError: the library cannot use its device.
            TableError: the library refuses the module.
        """
        ...


AnyBackend: TypeAlias = Backend | ModuleBackend
"""What can measure; one that has `build_module` is given modules, any other ONNX models."""


class Subject(Protocol):
    """Something to measure, in whichever form a backend takes; both forms compute the same."""

    def onnx(self) -> bytes:
        """Return it as a serialised ONNX model with static shapes."""
        ...

    def module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return it as a module in evaluation mode, its norms folded where they can be, and example inputs."""
        ...


def runner_of(subject: Subject, backend: AnyBackend) -> Runner:
    """Return a runner for a subject in the form that the backend takes; the other form is not made.

    Raises:
        MissingPackageError: the backend's library is not installed.
        BackendUnavailableError: the library cannot use its device.
        TableError: the library refuses the subject.
    """
    if isinstance(backend, ModuleBackend):
        return backend.build_module(*subject.module())
    return backend.build(subject.onnx())
