"""The share of a part's time that goes into layout changes at its ends, from the profile of the library that runs it.

Libraries keep feature maps in a layout of their own inside of a network, and change it where a model begins and ends. A
part that is run alone pays for that at both ends; inside of a network it does not.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from latency_tables.backends.part import PartRunner

__all__ = ["Profile", "profiled_runs", "share_of_changes"]

PROFILED_MS = 60.0  # of running, for each profile
LEAST_RUNS, MOST_RUNS = 10, 30

Profile = Iterable[tuple[bool, Sequence[float]]]
"""For each operation that was run: whether it changes a layout, and how long it took in each run."""


def profiled_runs(part: PartRunner) -> Iterator[None]:
    """Run a part as often as its profile needs, and yield after each run."""
    single_ms = min(part.time_ms(1) for _ in range(3))
    for _ in range(min(MOST_RUNS, max(LEAST_RUNS, round(PROFILED_MS / single_ms)))):
        part.restore_caches()
        part.time_ms(1)
        yield


def share_of_changes(profile: Profile) -> float:
    """Return the share of the time that goes into changes of layout in the later half of the runs, from 0 to 1.

    Example:
        >>> share_of_changes([(True, [0.4, 0.1]), (False, [0.5, 0.3])])
        0.25
    """
    times = [(changes, median(samples[len(samples) // 2 :])) for changes, samples in profile]
    whole = sum(time for _, time in times)
    return sum(time for changes, time in times if changes) / whole if whole else 0.0
