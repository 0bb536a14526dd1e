import pytest
from fake_backend import ENVIRONMENT, conv

from latency_tables import Calibration, Entry, LatencyTable, Method, OperatorSignature
from latency_tables.operators.size import multiply_adds, traffic_bytes
from latency_tables.tables.quality import quality_of

METHOD = Method(
    estimator="by hand", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.004
)


def table_of(latencies_ms: dict[OperatorSignature, float], *, spread: float = 0.01) -> LatencyTable:
    entries = {s.key: Entry(ms=ms, spread=spread, n=9) for s, ms in latencies_ms.items()}
    return LatencyTable(ENVIRONMENT, METHOD, entries)


def linear(intercept_ms: float, ms_per_giga: float, count: int = 12) -> LatencyTable:
    convs = [conv(3, channels) for channels in range(1, count + 1)]
    return table_of({s: intercept_ms + ms_per_giga * multiply_adds(s) / 1e9 for s in convs})


@pytest.mark.parametrize(
    ("key", "macs", "moved"),
    [
        ("conv 2x6x9x7 -> 10 k3x2 s2x1 p0,0,0,0 d1x1 g2 fp32", 2 * 10 * 4 * 6 * 3 * 6, 4 * (756 + 480 + 10 * 19)),
        ("conv 1x4x5x5 -> 4 k1x1 s1x1 p0,0,0,0 d1x1 g1 +add relu fp32", 400, 4 * (100 + 2 * 100 + 4 * 5)),
        ("avg_pool 1x4x6x6 -> 4 k2x2 s2x2 p0,0,0,0 d1x1 g1 fp32", 4 * 9 * 4, 4 * (144 + 36)),
        ("scale 1x4x3x3 -> 4 k1x1 s1x1 p0,0,0,0 d1x1 g1 fp32", 36, 4 * (36 + 36 + 8)),
    ],
)
def test_sizes(key: str, macs: int, moved: int) -> None:
    signature = OperatorSignature.parse(key)
    assert multiply_adds(signature) == macs
    assert traffic_bytes(signature) == moved


def test_the_line_over_size_is_found() -> None:
    (line,) = quality_of(linear(0.02, 30.0)).lines
    assert (line.kind, line.n) == ("convolution", 12)
    assert line.intercept_ms == pytest.approx(0.02)
    assert line.ms_per_giga == pytest.approx(30)


def test_few_entries_have_no_line() -> None:
    assert quality_of(linear(0.02, 30.0, count=7)).lines == ()


def test_a_table_that_grows_with_size_is_sound() -> None:
    quality = quality_of(linear(0.02, 30.0))
    assert quality.sound
    assert quality.pairs == 12 * 11 / 2
    assert (quality.inversions, quality.unstable, quality.free, quality.failures) == ((), {}, (), {})


def test_what_is_slower_than_a_larger_one_is_told_worst_first() -> None:
    table = table_of({conv(3, 4): 1.0, conv(3, 5): 0.5, conv(4, 5): 0.95, conv(3, 6): 0.8})
    found = [(inversion.smaller, inversion.larger) for inversion in quality_of(table).inversions]
    assert found == [(conv(3, 4).key, conv(3, 5).key), (conv(3, 4).key, conv(3, 6).key)]


def test_what_is_not_comparable_is_not_compared() -> None:
    others = [
        conv(3, 5, activation="relu"), conv(3, 5, residual=True), conv(3, 5, kernel=(1, 1)), conv(3, 5, stride=(2, 2)),
        conv(2, 6), conv(6, 6, groups=6),
    ]  # fmt: skip
    assert quality_of(table_of({conv(3, 4): 9.0, **dict.fromkeys(others, 1.0)})).pairs == 0
    depthwise = table_of({conv(6, 6, groups=6): 1.0, conv(8, 8, groups=8): 2.0})
    assert quality_of(depthwise).pairs == 1


def test_an_inversion_within_the_spread_is_none() -> None:
    assert quality_of(table_of({conv(3, 4): 1.0, conv(3, 5): 0.8}, spread=0.2)).inversions == ()


def test_unstable_free_and_failed_entries_are_listed() -> None:
    entries = {
        conv(3, 4).key: Entry(ms=1.0, spread=0.3, n=27, unstable=True, drifted=2),
        conv(3, 5).key: Entry(ms=0.0, spread=0.0, n=9),
    }
    fit = Calibration(0.1, 0.9, 0.02, 5)
    quality = quality_of(LatencyTable(ENVIRONMENT, METHOD, entries, {conv(3, 6).key: "no kernel"}, fit))
    assert quality.unstable == {conv(3, 4).key: 0.3}
    assert quality.drifted == {conv(3, 4).key: 2}
    assert quality.free == (conv(3, 5).key,)
    assert quality.failures == {conv(3, 6).key: "no kernel"}
    assert quality.calibration == fit
    assert quality.overhead_ms == 0.004
    assert not quality.sound


def test_a_larger_operator_that_costs_nothing_is_an_inversion() -> None:
    assert len(quality_of(table_of({conv(3, 4): 1.0, conv(3, 5): 0.0})).inversions) == 1


def test_an_empty_table_has_nothing_to_tell() -> None:
    quality = quality_of(LatencyTable(ENVIRONMENT, METHOD, {}))
    assert (quality.n, quality.lines, quality.pairs) == (0, (), 0)
