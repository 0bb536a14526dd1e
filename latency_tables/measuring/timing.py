"""The timing protocol: warm up by time, then interleaved rounds, so that drift hits all runners alike.

One of the runners, the sentinel, has a turn at the start, in the middle and at the end of each round. Where these
differ by more than its own noise, the machine changed while the others had their turns, and the round is done again.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from depthcomp_errors import TableError
from latency_tables.backends.capabilities import cache_restorer
from latency_tables.backends.protocol import Progress, Runner

__all__ = [
    "DRIFT_LIMIT",
    "ESTIMATOR",
    "EXTRA_ATTEMPTS",
    "SAMPLES_PER_ROUND",
    "STABLE_SPREAD",
    "Timing",
    "time_interleaved",
    "time_until_steady",
]

ESTIMATOR = "minimum of round medians"
LEAST_ROUNDS = 3  # fewer cannot tell drift from spread
SAMPLES_PER_ROUND = 3
MOST_SINGLES = 15  # at most, of a part whose caches are restored before each
STABLE_SPREAD = 0.025  # trtexec's threshold for a coefficient of variation
EXTRA_ATTEMPTS = 2
DRIFT_LIMIT = 0.03  # between turns of the sentinel in a round; above the 2.5 % of a steady spread, as it is a range
NOISE_RANGE = 4.1  # standard errors; three turns that differ by noise alone are further apart once in a hundred rounds
ROUNDS_PER_REDO = 3  # of these one may be done again: a machine that never rests costs about a third more
LEAST_FOR_A_MIDDLE = 4  # other runners; with fewer, the sentinel's start and end are close enough together
_NORMAL_CONSISTENCY = 1.4826  # median absolute deviation -> standard deviation of a normal distribution
_MEDIAN_INEFFICIENCY = 1.2533  # standard error of a median over that of a mean, sqrt(pi / 2), of a normal distribution


@dataclass(frozen=True, slots=True)
class Timing:
    """The latency of one runner.

    Attributes:
        rounds_ms: median latency in ms of one inference in each round. Runners timed together share their
            rounds, so whole networks are best compared round by round.
        n: samples behind it, over all rounds; a sentinel's additional turns are not counted.
        drifted: rounds among them in which the machine changed its speed, kept as it did not settle.
    """

    rounds_ms: tuple[float, ...]
    n: int
    drifted: int = 0

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
        return _spread(self.rounds_ms)

    def pooled(self, other: "Timing") -> "Timing":
        """Return the timing over the rounds of both."""
        return Timing(self.rounds_ms + other.rounds_ms, self.n + other.n, self.drifted + other.drifted)


def time_interleaved(
    runners: Mapping[str, Runner],
    *,
    rounds: int = 5,
    seed: int = 0,
    sample_ms: float = 3.0,
    warmup_ms: float = 20.0,
    drift_limit: float = DRIFT_LIMIT,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Return the latency of each runner, all timed side by side.

    Each runner is warmed up for `warmup_ms`, which also tells how many inferences make up a sample of at
    least `sample_ms`. In each round every runner has one turn, in an order drawn anew from `seed`: one
    untimed inference that brings its weights back into the cache, then a few samples, of which the median
    counts. A sample of a runner that has `restore_caches` is one inference, right after that, and there are up to 15.
    The garbage collector is off meanwhile.

    The runner of median latency is the sentinel: it has a turn at the start, in the middle (from five runners on)
    and at the end of each round, and their median counts; the end of a round is the start of the next. A round in
    which they differ by more than `drift_limit` is broken off and done again, one round in three at most; further ones
    are kept and counted in `Timing.drifted`. Where single samples scatter so much that their medians may differ by
    more without any change of the machine, 4.1 standard errors of such a median take the place of the limit. A runner
    alone needs no sentinel: nothing stands between its turns.

    Args:
        runners: what to time, by name.
        rounds: rounds that count, at least 3.
        seed: draws the order of the rounds.
        sample_ms: least duration in ms of one sample.
        warmup_ms: least duration in ms of the warm-up of each runner.
        drift_limit: how far the slowest turn of the sentinel in a round may be above its fastest, relative to that,
            where its samples scatter little.
        progress: called as (rounds done, rounds in all, "round") after each round, one broken off included.

    Raises:
        TableError: `rounds` is below 3, `seed` below 0, or a runner reports a time that is not positive.

    Example:
        >>> class Steady:
        ...     def time_ms(self, inner): return 0.5 * inner
        ...     def close(self): pass
        >>> time_interleaved({"steady": Steady()})["steady"].ms
        0.5
    """
    if rounds < LEAST_ROUNDS:
        raise TableError(f"rounds (={rounds}) must be at least {LEAST_ROUNDS} to tell drift from spread.")
    if seed < 0:
        raise TableError(f"seed (={seed}) must be at least 0.")
    if not runners:
        return {}
    with _collector_off():
        single_ms = {name: _warm_up(runner, warmup_ms, sample_ms) for name, runner in runners.items()}
        inner = {name: _inner(milliseconds, sample_ms) for name, milliseconds in single_ms.items()}
        sentinel = _Sentinel(sorted(runners, key=lambda name: single_ms[name])[(len(runners) - 1) // 2], drift_limit)

        def turn(name: str) -> float:
            samples_ms = _turn(runners[name], inner[name])
            if name == sentinel.name:
                sentinel.watch(samples_ms)
            return median(samples_ms)

        orders = _orders([name for name in runners if name != sentinel.name], sentinel.name, seed)
        kept, drifted = _rounds(orders, sentinel, turn, rounds, progress)
    return {
        name: Timing(
            tuple(median(turns[name]) for turns in kept),
            rounds * _samples(runners[name], inner[name]),
            drifted,
        )
        for name in runners
    }


def time_until_steady(
    runners: Mapping[str, Runner],
    *,
    rounds: int,
    seed: int,
    sample_ms: float,
    warmup_ms: float,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Return the latency of each runner, all timed again, twice at most, while the spread of one is above 2.5 %.

    Arguments and errors are those of `time_interleaved`; the rounds of all attempts count.
    """
    timings: dict[str, Timing] = {}
    for attempt in range(1 + EXTRA_ATTEMPTS):
        found = time_interleaved(
            runners, rounds=rounds, seed=seed + attempt, sample_ms=sample_ms, warmup_ms=warmup_ms, progress=progress
        )
        timings = {name: timings[name].pooled(timing) if timings else timing for name, timing in found.items()}
        if all(timing.spread <= STABLE_SPREAD for timing in timings.values()):
            break
    return timings


_Turns = dict[str, list[float]]  # of one round: the latency of each turn in ms, by runner


@dataclass(frozen=True, slots=True)
class _Sentinel:
    """The runner whose turns tell whether the machine keeps its speed.

    Attributes:
        name: of the runner.
        limit: how far its turns in a round may be apart in any case, relative to the fastest.
        errors: standard error of each turn so far, relative to the turn.
    """

    name: str
    limit: float
    errors: list[float] = field(default_factory=list)

    def watch(self, samples_ms: Sequence[float]) -> None:
        """Learn from the samples of a turn how far noise alone moves its median."""
        self.errors.append(_MEDIAN_INEFFICIENCY * _spread(samples_ms) / math.sqrt(len(samples_ms)))

    def drifted(self, turns_ms: Sequence[float]) -> bool:
        """Return whether its turns in a round are further apart than the limit, and than noise explains."""
        apart = max(turns_ms) / min(turns_ms) - 1
        return apart > max(self.limit, NOISE_RANGE * median(self.errors))


def _spread(values: Sequence[float]) -> float:
    """Return the coefficient of variation, from the median absolute deviation."""
    centre = median(values)
    return _NORMAL_CONSISTENCY * median(abs(value - centre) for value in values) / centre


def _rounds(
    orders: Iterator[Sequence[str]],
    sentinel: _Sentinel,
    turn: Callable[[str], float],
    rounds: int,
    progress: Progress | None,
) -> tuple[list[_Turns], int]:
    """Return the rounds that count, and in how many of them the sentinel drifted."""
    kept: list[_Turns] = []
    drifted, redoes = 0, rounds // ROUNDS_PER_REDO
    start_ms: float | None = None
    while len(kept) < rounds:
        turns = _round(next(orders), sentinel, turn, start_ms, break_off=redoes > 0)
        drifts = sentinel.drifted(turns[sentinel.name])
        if drifts and redoes:
            redoes, start_ms = redoes - 1, None
        else:
            kept.append(turns)
            drifted, start_ms = drifted + drifts, turns[sentinel.name][-1]
        if progress is not None:
            progress(len(kept), rounds, "round")
    return kept, drifted


def _round(
    order: Sequence[str], sentinel: _Sentinel, turn: Callable[[str], float], start_ms: float | None, *, break_off: bool
) -> _Turns:
    """Let all have their turns, to the end or, with `break_off`, until the sentinel has drifted.

    `start_ms` is the sentinel's turn just before, None where it has to have one.
    """
    turns: _Turns = {name: [] for name in order}
    if len(turns) > 1:
        turns[sentinel.name].append(turn(sentinel.name) if start_ms is None else start_ms)
    for name in order:
        turns[name].append(turn(name))
        if break_off and name == sentinel.name and sentinel.drifted(turns[name]):
            break
    return turns


def _orders(others: Sequence[str], sentinel: str, seed: int) -> Iterator[list[str]]:
    """Yield the turns of round after round, but for the sentinel's at the start."""
    rng = np.random.default_rng(seed)
    while True:
        order = [others[index] for index in rng.permutation(len(others))]
        middle = [sentinel] if len(others) >= LEAST_FOR_A_MIDDLE else []
        yield [*order[: len(order) // 2], *middle, *order[len(order) // 2 :], sentinel]


def _warm_up(runner: Runner, warmup_ms: float, sample_ms: float) -> float:
    """Run for `warmup_ms` and return what an inference takes at best, in ms."""
    spent_ms, fastest_ms, inner = 0.0, math.inf, 1
    while spent_ms == 0 or spent_ms < warmup_ms:
        elapsed_ms = _time_ms(runner, inner)
        spent_ms += elapsed_ms
        fastest_ms = min(fastest_ms, elapsed_ms / inner)
        inner = min(2 * inner, _inner(fastest_ms, sample_ms))
    return fastest_ms


def _inner(single_ms: float, sample_ms: float) -> int:
    """Return how many inferences last `sample_ms`."""
    return max(1, math.ceil(sample_ms / single_ms))


def _turn(runner: Runner, inner: int) -> list[float]:
    """Return the time of an inference in ms, one for each sample."""
    samples = range(_samples(runner, inner))
    restore = cache_restorer(runner)
    if restore is not None:
        return [_after(restore, runner) for _ in samples]
    _time_ms(runner, 1)
    return [_time_ms(runner, inner) / inner for _ in samples]


def _samples(runner: Runner, inner: int) -> int:
    """Return how many samples a turn has, of `inner` inferences each or of one, right after caches were restored."""
    single = cache_restorer(runner) is not None
    return min(MOST_SINGLES, SAMPLES_PER_ROUND * inner) if single else SAMPLES_PER_ROUND


def _after(restore: Callable[[], None], runner: Runner) -> float:
    restore()
    return _time_ms(runner, 1)


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
