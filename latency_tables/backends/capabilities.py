"""Capabilities that a backend or its runners may have besides the protocol, one protocol and one function for each.

A backend has a capability where it defines the method; nothing is registered. Without it, the function says what holds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from latency_tables.backends.protocol import AnyBackend, Runner, Subject, runner_of

__all__ = [
    "DeviceState",
    "KeepsTimings",
    "KnowsLayoutShare",
    "ReadsDeviceState",
    "RestoresCaches",
    "RunsParts",
    "cache_restorer",
    "device_state",
    "keep_timings_beside",
    "layout_share",
    "part_runner_of",
]

DeviceState: TypeAlias = dict[str, str | int]
"""Clocks, temperature and the like of a device, by name."""


@runtime_checkable
class RunsParts(Protocol):
    """A backend that runs a part of a network otherwise than a whole network.

    A part reads and writes feature maps in the layout that its neighbours leave them in; a whole network takes them
    as its user does.
    """

    def build_part(self, onnx_model: bytes) -> Runner:
        """Return a runner for a part, a serialised ONNX model with static shapes; raises like `Backend.build`."""
        ...


@runtime_checkable
class RestoresCaches(Protocol):
    """A runner that can bring the caches to the state in which a part finds them in a network."""

    def restore_caches(self) -> None:
        """Bring the caches to that state; the next inference is timed right after."""
        ...


@runtime_checkable
class KnowsLayoutShare(Protocol):
    """A runner that knows what share of its time goes into layout changes at its ends.

    Inside a network there are no such changes, so they do not belong to the cost of a part.
    """

    layout_share: float
    """From 0 to 1."""


@runtime_checkable
class ReadsDeviceState(Protocol):
    """A backend that reads the state of its device."""

    def device_state(self) -> DeviceState | None:
        """Return clocks, temperature and the like now; None where nothing tells them."""
        ...


@runtime_checkable
class KeepsTimings(Protocol):
    """A backend whose builds time kernels, and that can keep these timings on disk."""

    def keep_timings_beside(self, file: Path) -> None:
        """Keep what builds learn in the folder of `file`; a first folder stays."""
        ...


def part_runner_of(subject: Subject, backend: AnyBackend) -> Runner:
    """Return a runner for a part of a network; like one for a whole network where the backend makes no difference."""
    return backend.build_part(subject.onnx()) if isinstance(backend, RunsParts) else runner_of(subject, backend)


def cache_restorer(runner: Runner) -> Callable[[], None] | None:
    """Return the function that restores the caches for a part; None where its runner cannot."""
    return runner.restore_caches if isinstance(runner, RestoresCaches) else None


def layout_share(runner: Runner) -> float:
    """Return the share of a part's time that goes into layout changes at its ends; 0 where its runner knows of none."""
    return runner.layout_share if isinstance(runner, KnowsLayoutShare) else 0.0


def device_state(backend: AnyBackend) -> DeviceState | None:
    """Return clocks, temperature and the like of the device now; None where the backend does not read them."""
    return backend.device_state() if isinstance(backend, ReadsDeviceState) else None


def keep_timings_beside(backend: AnyBackend, file: Path) -> None:
    """Let the backend keep what its builds learn in the folder of `file`; nothing happens where it keeps nothing."""
    if isinstance(backend, KeepsTimings):
        backend.keep_timings_beside(file)
