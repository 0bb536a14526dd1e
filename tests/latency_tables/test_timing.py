import gc
from contextlib import suppress

import numpy as np
import pytest
from fake_backend import FakeRunner, Machine
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import TableError
from latency_tables import Timing, time_interleaved
from latency_tables.measuring.timing import DRIFT_LIMIT, SAMPLES_PER_ROUND


def side_by_side(machine: Machine, *, names: str = "ab", true_ms: float = 0.4) -> dict[str, FakeRunner]:
    return {name: FakeRunner(name, true_ms, machine) for name in names}


def drifting(now_ms: float) -> float:
    return 1 + now_ms / 1000  # twice as slow after a second


def timed_calls(machine: Machine, name: str, rounds: int) -> list[tuple[str, int, float]]:
    """The samples of one runner: in each of its turns an untimed inference comes first."""
    calls = [call for call in machine.calls if call[0] == name][-rounds * (1 + SAMPLES_PER_ROUND) :]
    return [call for index, call in enumerate(calls) if index % (1 + SAMPLES_PER_ROUND)]


def test_a_steady_machine_is_read_to_the_digit() -> None:
    timings = time_interleaved({"a": FakeRunner("a", 0.4), "b": FakeRunner("b", 7.0)})
    assert timings["a"].ms == pytest.approx(0.4)
    assert timings["b"].rounds_ms == pytest.approx([7.0] * 5)
    assert timings["a"].spread == pytest.approx(0, abs=1e-9)
    assert timings["a"].n == 5 * SAMPLES_PER_ROUND


def test_drift_hits_all_runners_alike() -> None:
    alone = Machine(drifting)
    one_by_one = [time_interleaved({name: FakeRunner(name, 0.4, alone)})[name].ms for name in "abcdefgh"]
    together = time_interleaved(side_by_side(Machine(drifting), names="abcdefgh"))
    assert max(one_by_one) / min(one_by_one) > 1.4
    estimates = [timing.ms for timing in together.values()]
    assert max(estimates) / min(estimates) < 1.1
    pairs = zip(together["a"].rounds_ms, together["h"].rounds_ms, strict=True)
    assert all(a == pytest.approx(h, rel=0.1) for a, h in pairs)


def test_noise_only_adds_so_the_estimate_stays_at_the_truth() -> None:
    rng = np.random.default_rng(0)
    noisy = Machine(lambda now_ms: 1 + (rng.random() < 0.4) * rng.exponential(0.5))
    timing = time_interleaved(side_by_side(noisy))["a"]
    assert timing.ms == pytest.approx(0.4, rel=0.01)


@pytest.mark.parametrize("true_ms", [0.001, 0.4, 2.9, 50.0])
def test_every_sample_is_long_enough(true_ms: float) -> None:
    machine = Machine()
    time_interleaved(side_by_side(machine, true_ms=true_ms), rounds=3)
    samples = timed_calls(machine, "b", rounds=3)
    assert len(samples) == 3 * SAMPLES_PER_ROUND
    assert all(elapsed_ms >= 3.0 for _, _, elapsed_ms in samples)
    assert all((inner - 1) * true_ms < 3.0 for _, inner, _ in samples)


def test_each_runner_is_warmed_up_by_time() -> None:
    machine = Machine()
    time_interleaved(side_by_side(machine), rounds=3, warmup_ms=100)
    turns = 3 * (1 + SAMPLES_PER_ROUND)
    warm_up = [elapsed_ms for name, _, elapsed_ms in machine.calls if name == "b"][:-turns]
    assert sum(warm_up) == pytest.approx(101.5, abs=1.5)


def turns_taken(machine: Machine, names: str) -> str:
    """Whose turn it was, turn after turn, on a machine on which an inference takes 1 ms and so a sample three.

    Nothing but the start of a warm-up and that of a turn is a single inference.
    """
    return "".join(name for name, inner, _ in machine.calls if inner == 1)[len(names) :]


def turns_of(seed: int) -> list[str]:
    """Return the sentinel's first turn and the turns of each round after it."""
    machine = Machine()
    time_interleaved(side_by_side(machine, names="abcdef", true_ms=1.0), seed=seed)
    turns = turns_taken(machine, "abcdef")
    return [turns[0], *(turns[start : start + 7] for start in range(1, len(turns), 7))]


def test_every_round_has_each_runner_once_in_an_order_of_its_own() -> None:
    first, *rounds = turns_of(seed=0)
    assert first == "c"  # of six that take the same, the third is the sentinel
    assert len(rounds) == 5
    assert all(sorted(order) == list("abccdef") for order in rounds)
    assert len(set(rounds)) > 1


def test_the_sentinel_is_in_the_middle_and_at_the_end_of_each_round() -> None:
    assert all((order[2], order[6]) == ("c", "c") for order in turns_of(seed=0)[1:])


@pytest.mark.parametrize(("names", "turns"), [("a", 5), ("ab", 11), ("abcd", 21), ("abcde", 31), ("abcdef", 36)])
def test_a_machine_that_keeps_its_speed_costs_the_turns_of_the_sentinel_only(names: str, turns: int) -> None:
    machine = Machine()
    timings = time_interleaved(side_by_side(machine, names=names, true_ms=1.0))
    assert len(turns_taken(machine, names)) == turns
    assert {timing.drifted for timing in timings.values()} == {0}


def test_the_sentinel_is_the_runner_of_median_latency() -> None:
    machine = Machine()
    time_interleaved({name: FakeRunner(name, ms, machine) for name, ms in zip("abc", (50.0, 0.4, 7.0), strict=True)})
    calls = [call[0] for call in machine.calls]
    assert calls[-1 - SAMPLES_PER_ROUND :] == ["c"] * (1 + SAMPLES_PER_ROUND)


NAMES = "abcdef"
WARM_UP_MS = 6 * 21.0  # 1, 2 and six times 3 inferences of 1 ms each
ROUND_MS = 7 * 10.0  # six turns and the sentinel's in the middle, each of one and three times three inferences


def changing(factor: float, round_share: float = 0.5) -> Machine:
    """A machine that changes its speed once, in the third round."""
    change_ms = WARM_UP_MS + 10 + (2 + round_share) * ROUND_MS
    return Machine(lambda now_ms: 1.0 if now_ms < change_ms else factor)


@pytest.mark.parametrize("factor", [1.1, 0.9], ids=["slower", "faster"])
@pytest.mark.parametrize(("round_share", "turns"), [(0.2, 3), (0.5, 7), (0.8, 7)])
def test_a_round_in_which_the_machine_changes_its_speed_is_done_again(
    factor: float, round_share: float, turns: int
) -> None:
    """It is broken off in the middle where the sentinel knows by then."""
    machine = changing(factor, round_share)
    timings = time_interleaved(side_by_side(machine, names=NAMES, true_ms=1.0))
    assert len(turns_taken(machine, NAMES)) == 1 + 5 * 7 + 1 + turns
    for timing in timings.values():
        assert timing.rounds_ms == pytest.approx([1.0, 1.0, factor, factor, factor])
        assert timing.n == 5 * SAMPLES_PER_ROUND
        assert timing.drifted == 0


def test_no_sample_of_a_round_that_is_done_again_counts() -> None:
    """A hiccup of the sentinel's last turn must not be the start of the next round either."""
    hiccup_ms = WARM_UP_MS + 10 + 2 * ROUND_MS - 10
    machine = Machine(lambda now_ms: 1.5 if hiccup_ms <= now_ms < hiccup_ms + 10 else 1.0)
    timings = time_interleaved(side_by_side(machine, names=NAMES, true_ms=1.0))
    assert max(elapsed_ms / inner for _, inner, elapsed_ms in machine.calls) == 1.5
    assert all(timing.rounds_ms == pytest.approx([1.0] * 5) for timing in timings.values())
    assert len(turns_taken(machine, NAMES)) == 1 + 5 * 7 + 1 + 7


@pytest.mark.parametrize(("rounds", "redone"), [(3, 1), (5, 1), (7, 2)])
def test_a_machine_that_never_settles_costs_a_third_more_at_most_and_is_told(rounds: int, redone: int) -> None:
    machine, reports = Machine(lambda now_ms: 1 + now_ms / 200), []
    timings = time_interleaved(
        side_by_side(machine, names=NAMES, true_ms=1.0),
        rounds=rounds, progress=lambda done, total, what: reports.append((done, total, what)),
    )  # fmt: skip
    assert len(turns_taken(machine, NAMES)) == 1 + 7 * rounds + (3 + 1) * redone
    assert {timing.drifted for timing in timings.values()} == {rounds}
    assert {len(timing.rounds_ms) for timing in timings.values()} == {rounds}
    thrown_away = [(0, rounds, "round")] * redone
    assert reports == [*thrown_away, *((done, rounds, "round") for done in range(1, rounds + 1))]


@pytest.mark.parametrize(("change", "turns"), [(0.9 * DRIFT_LIMIT, 36), (1.1 * DRIFT_LIMIT, 44)])
def test_three_percent_are_the_limit_unless_told_otherwise(change: float, turns: int) -> None:
    machine = changing(1 + change)
    time_interleaved(side_by_side(machine, names=NAMES, true_ms=1.0))
    assert len(turns_taken(machine, NAMES)) == turns
    lenient = changing(1 + change)
    time_interleaved(side_by_side(lenient, names=NAMES, true_ms=1.0), drift_limit=2 * DRIFT_LIMIT)
    assert len(turns_taken(lenient, NAMES)) == 36


class PartOfANetwork(FakeRunner):
    """Each sample is a single inference, so noise does not average out within it."""

    def restore_caches(self) -> None:
        pass


def noisy_parts(step: float, seed: int) -> dict[str, Timing]:
    """Time parts whose single inferences scatter by 8 %, on a machine that changes its speed by `step` all the time."""
    rng = np.random.default_rng(seed)
    machine = Machine(lambda now_ms: (1 + 0.08 * rng.standard_normal()) * (step if now_ms % 120 < 60 else 1.0))
    return time_interleaved({name: PartOfANetwork(name, 1.0, machine) for name in NAMES})


def test_noise_within_the_turns_of_the_sentinel_is_no_drift() -> None:
    drifted = [noisy_parts(1.0, seed)["a"].drifted for seed in range(20)]
    assert sum(drifted) <= 2  # of a hundred rounds; all but a few of them differ by more than 3 %


def test_a_change_of_speed_is_seen_through_noise() -> None:
    drifted = [noisy_parts(1.3, seed)["a"].drifted for seed in range(20)]
    assert sum(drifted) >= 90


def test_a_steady_drift_favours_neither_of_two_networks() -> None:
    timings = time_interleaved(side_by_side(Machine(drifting), true_ms=1.0), drift_limit=1.0)
    for before, after in zip(timings["a"].rounds_ms, timings["b"].rounds_ms, strict=True):
        assert after == pytest.approx(before, rel=2e-3)


def test_the_seed_draws_the_order() -> None:
    assert turns_of(seed=1) == turns_of(seed=1)
    assert turns_of(seed=1) != turns_of(seed=2)


@pytest.mark.parametrize("factor", [1.0, float("nan")], ids=["returns", "raises"])
def test_the_collector_is_off_while_timing_and_on_afterwards(factor: float) -> None:
    seen = []

    def slowdown(now_ms: float) -> float:
        seen.append(gc.isenabled())
        return factor

    with suppress(TableError):
        time_interleaved(side_by_side(Machine(slowdown)))
    assert not any(seen)
    assert gc.isenabled()


def test_nothing_to_time_is_no_error() -> None:
    assert time_interleaved({}) == {}


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(TableError, match=r"rounds \(=2\) must be at least 3"):
        time_interleaved({}, rounds=2)


def test_a_seed_that_draws_no_order_is_refused() -> None:
    with pytest.raises(TableError, match=r"seed \(=-1\) must be at least 0"):
        time_interleaved({}, seed=-1)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_broken_clock_is_refused(factor: float) -> None:
    with pytest.raises(TableError, match="for 1 inferences, but a time is finite and positive"):
        time_interleaved(side_by_side(Machine(lambda now_ms: factor)))


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=9), st.floats(0.5, 2))
def test_the_spread_is_relative_and_the_estimate_below_the_median(rounds_ms: list[float], factor: float) -> None:
    timing = Timing(tuple(rounds_ms), len(rounds_ms))
    scaled = Timing(tuple(factor * value for value in rounds_ms), len(rounds_ms))
    assert timing.ms <= timing.median_ms
    assert scaled.spread == pytest.approx(timing.spread, abs=1e-6)


def test_the_spread_is_the_coefficient_of_variation_of_normal_noise() -> None:
    rounds_ms = np.random.default_rng(0).normal(10, 0.5, 20_000)
    assert Timing(tuple(rounds_ms.tolist()), 20_000).spread == pytest.approx(0.05, rel=0.03)


def test_pooling_keeps_all_rounds() -> None:
    pooled = Timing((3.0, 4.0, 5.0), 9, drifted=1).pooled(Timing((1.0, 2.0, 3.0), 9, drifted=2))
    assert pooled == Timing((3.0, 4.0, 5.0, 1.0, 2.0, 3.0), 18, drifted=3)
    assert pooled.ms == 1.0
