"""What a backend may offer besides the protocol, and what holds where it does not."""

from collections.abc import Callable
from pathlib import Path

from latency_tables.backends.protocol import AnyBackend, Runner, Subject, runner_of

__all__ = ["DeviceState", "cache_restorer", "device_state", "keep_timings_beside", "layout_share", "part_runner_of"]

DeviceState = dict[str, str | int]


def part_runner_of(subject: Subject, backend: AnyBackend) -> Runner:
    """Return a runner of a part of a network: made by the backend's `build_part`, else like one of a whole network.

    A part reads and writes feature maps in the layout that its neighbours leave them in; a whole network takes them
    as its user does.
    """
    build_part: Callable[[bytes], Runner] | None = getattr(backend, "build_part", None)
    return runner_of(subject, backend) if build_part is None else build_part(subject.onnx())


def cache_restorer(runner: Runner) -> Callable[[], None] | None:
    """Return what brings caches to the state in which a part finds them in a network; None where its runner cannot."""
    restore: Callable[[], None] | None = getattr(runner, "restore_caches", None)
    return restore


def layout_share(runner: Runner) -> float:
    """Return the share of a part's time that goes into layout changes at its ends; 0 where its runner knows of none.

    Inside of a network there are none, so that they do not belong to what the part costs.
    """
    share: float = getattr(runner, "layout_share", 0.0)
    return share


def device_state(backend: AnyBackend) -> DeviceState | None:
    """Return the clocks, temperature and the like of the device now; None where the backend's `device_state` is not."""
    read: Callable[[], DeviceState | None] | None = getattr(backend, "device_state", None)
    return None if read is None else read()


def keep_timings_beside(backend: AnyBackend, file: Path) -> None:
    """Let a backend that has `keep_timings_beside` keep what its builds learn in the folder of `file`."""
    keep: Callable[[Path], None] | None = getattr(backend, "keep_timings_beside", None)
    if keep is not None:
        keep(file)
