"""The timing protocol: warm up by time, then interleaved rounds, so that drift hits all runners alike."""

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np

from depthcomp_errors import TableError
from latency_tables.protocol import Progress, Runner

__all__ = ["ESTIMATOR", "SAMPLES_PER_ROUND", "Timing", "time_interleaved"]

ESTIMATOR = "minimum of round medians"
LEAST_ROUNDS = 3  # fewer cannot tell drift from spread
SAMPLES_PER_ROUND = 3
_NORMAL_CONSISTENCY = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclass(frozen=True, slots=True)
class Timing:
    """The latency of one runner.

    Attributes:
        rounds_ms: median latency in ms of one inference in each round. Runners timed together share their
            rounds, so whole networks are best compared round by round.
        n: samples behind it, over all rounds.
    """

    rounds_ms: tuple[float, ...]
    n: int

    @property
    def ms(self) -> float:
        """The estimate in ms: the minimum of the round medians, as noise on a CPU only ever adds time."""
        return min(self.rounds_ms)

    @property
    def median_ms(self) -> float:
        """The median of the round medians in ms."""
        return median(self.rounds_ms)

    @property
    def spread(self) -> float:
        """The coefficient of variation of the round medians, from their median absolute deviation."""
        centre = self.median_ms
        deviation = median(abs(value - centre) for value in self.rounds_ms)
        return _NORMAL_CONSISTENCY * deviation / centre

    def pooled(self, other: "Timing") -> "Timing":
        """Return the timing over the rounds of both."""
        return Timing(self.rounds_ms + other.rounds_ms, self.n + other.n)


def time_interleaved(
    runners: Mapping[str, Runner],
    *,
    rounds: int = 5,
    seed: int = 0,
    sample_ms: float = 3.0,
    warmup_ms: float = 20.0,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Return the latency of each runner, all timed side by side.

    Each runner is warmed up for `warmup_ms`, which also tells how many inferences make up a sample of at
    least `sample_ms`. In each round every runner has one turn, in an order drawn anew from `seed`: one
    untimed inference that brings its weights back into the cache, then a few samples, of which the median
    counts. The garbage collector is off meanwhile.

    Args:
        runners: what to time, by name.
        rounds: turns of each runner, at least 3.
        seed: draws the order of the rounds.
        sample_ms: least duration in ms of one sample.
        warmup_ms: least duration in ms of the warm-up of each runner.
        progress: called as (turns done, turns in all, name of the runner).

    Raises:
        TableError: `rounds` is below 3, or a runner reports a time that is not positive.

    Example:
        >>> class Steady:
        ...     def time_ms(self, inner): return 0.5 * inner
        ...     def close(self): pass
        >>> time_interleaved({"steady": Steady()})["steady"].ms
        0.5
    """
    if rounds < LEAST_ROUNDS:
        raise TableError(f"rounds (={rounds}) must be at least {LEAST_ROUNDS} to tell drift from spread.")
    medians: dict[str, list[float]] = {name: [] for name in runners}
    with _collector_off():
        inner = {name: _warm_up(runner, warmup_ms, sample_ms) for name, runner in runners.items()}
        for done, name in enumerate(_turns(list(runners), rounds, seed), start=1):
            medians[name].append(_turn(runners[name], inner[name]))
            if progress is not None:
                progress(done, rounds * len(runners), name)
    return {name: Timing(tuple(values), rounds * SAMPLES_PER_ROUND) for name, values in medians.items()}


def _turns(names: list[str], rounds: int, seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        for index in rng.permutation(len(names)):
            yield names[index]


def _warm_up(runner: Runner, warmup_ms: float, sample_ms: float) -> int:
    """Run for `warmup_ms` and return how many inferences last `sample_ms`."""
    spent_ms, fastest_ms, inner = 0.0, math.inf, 1
    while spent_ms == 0 or spent_ms < warmup_ms:
        elapsed_ms = _time_ms(runner, inner)
        spent_ms += elapsed_ms
        fastest_ms = min(fastest_ms, elapsed_ms / inner)
        enough = max(1, math.ceil(sample_ms / fastest_ms))
        inner = min(2 * inner, enough)
    return enough


def _turn(runner: Runner, inner: int) -> float:
    _time_ms(runner, 1)
    return median(_time_ms(runner, inner) / inner for _ in range(SAMPLES_PER_ROUND))


def _time_ms(runner: Runner, inner: int) -> float:
    elapsed_ms = runner.time_ms(inner)
    if not (math.isfinite(elapsed_ms) and elapsed_ms > 0):
        raise TableError(
            f"the runner reported {elapsed_ms} ms for {inner} inferences, but a time is finite and positive;"
            " mend the backend."
        )
    return elapsed_ms


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
