"""Progress of a build, and its stop: by Ctrl-C, or by an error in the caller's progress function."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from latency_tables.backends.protocol import Progress

__all__ = ["Stop", "new_monitor", "stopped_by_interrupt"]

_PARTS = 1000  # phases nest, so progress is a share of the whole


class Stop:
    """The wish to stop a build. No exception may pass through the library, so it waits here.

    Attributes:
        error: what is to be raised once the library has returned; None while the build goes on.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def raise_if_wanted(self) -> None:
        """Raise what stopped the build, if anything did."""
        if self.error is not None:
            raise self.error


@contextmanager
def stopped_by_interrupt(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C ask for a stop meanwhile, instead of raising inside the library.

    Outside the main thread, or where the process has a handler of its own, nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def ask(*_: Any) -> None:
        stop.error = KeyboardInterrupt()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def new_monitor(trt: Any, progress: Progress | None, stop: Stop) -> Any:
    """Return a monitor that reports to `progress` as (parts done, 1000, phase) and asks `stop` at each step."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the base class is known only when the library is there
        def __init__(self) -> None:
            base.__init__(self)
            self._phases: dict[str, _Phase] = {}
            self._parts = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = _Phase(parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phase = self._phases.get(phase_name)
            if phase is not None and progress is not None and stop.error is None:
                phase.done = step + 1
                parts = round(_PARTS * _share(self._phases, phase_name))
                self._parts = max(self._parts, parts)  # phases overlap, and what is done stays done
                try:
                    progress(self._parts, _PARTS, phase_name)
                except BaseException as error:  # an interrupt too: it is raised after the build
                    stop.error = error
            return stop.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()


def _share(phases: dict[str, _Phase], name: str) -> float:
    """Return the share of the outermost phase that is done, the phase called `name` being its latest part."""
    within, place = 0.0, phases.get(name)
    while place is not None:
        within = min(1.0, (place.done + within) / max(1, place.steps))
        place = phases.get(place.parent) if place.parent is not None else None
    return within
