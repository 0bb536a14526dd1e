"""Progress of a compression: named stages, reported as they advance, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from depthcomp.errors import DepthCompError

__all__ = ["Foretells", "Progress", "Stages", "silent"]

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) after each piece of work."""


@runtime_checkable
class Foretells(Protocol):
    """A progress that also wants to know how long the run will take."""

    def foretell(self, seconds: float) -> None:
        """Take the seconds that the whole run will take, from its beginning."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class Stages:
    """Times the stages of a run and passes their progress on.

    Args:
        progress: called with the progress; None for silence.
        seconds: wall time of earlier stages; new times are added to this dictionary.

    Raises:
        DepthCompError: `progress` is no function.

    Attributes:
        report: `progress`, always callable.
        seconds: wall time of each finished stage, over all its runs.
        foretold_seconds: the wall time of the whole run as foretold; None before that.

    Example:
        >>> stages = Stages(lambda stage, done, total: print(stage, done, "of", total))
        >>> with stages("capturing"):
        ...     pass
        capturing 0 of 1
        capturing 1 of 1
        >>> list(stages.seconds)
        ['capturing']
    """

    def __init__(self, progress: Progress | None, seconds: dict[str, float] | None = None) -> None:
        if progress is not None and not callable(progress):
            raise DepthCompError(f"progress (={progress!r}) must be a function (stage, done, total) -> None, or None")
        self.report: Progress = progress or silent
        self._listener: object = progress
        self.seconds = {} if seconds is None else seconds
        self.foretold_seconds: float | None = None
        self._began = time.perf_counter()

    def foretell(self, seconds: float) -> None:
        """Pass on that the run will take some seconds from now."""
        self.foretold_seconds = time.perf_counter() - self._began + seconds
        if isinstance(self._listener, Foretells):
            self._listener.foretell(self.foretold_seconds)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a block as the stage `name`; a block that raises does not finish it."""
        self.report(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.report(name, 1, 1)
