from dataclasses import replace

import numpy as np
import pytest
from fake_backend import FakeBackend, FakeRunner, Machine, conv, model_ms, net_ms

from depthcomp_errors import TableError, TableMismatchError
from latency_tables import OperatorSignature, Timing, measure
from latency_tables.measuring.measure import CHUNK_ENTRIES, measure_chunk, measured_method
from latency_tables.operators.models import call_overhead_model, operator_model

SIGNATURES = [conv(3, channels) for channels in range(2, 8)]
OVERHEAD = call_overhead_model()


def models(signatures: list[OperatorSignature]) -> list[bytes]:
    return sorted(operator_model(signature) for signature in signatures)


def measured_models(backend: FakeBackend) -> list[bytes]:
    return sorted(model for model in backend.built if model != OVERHEAD)


def test_entries_are_the_operators_without_the_call_overhead() -> None:
    table = measure(SIGNATURES, FakeBackend())
    assert len(table) == len(SIGNATURES)
    for signature in SIGNATURES:
        assert table.ms(signature) == pytest.approx(net_ms(signature))
    assert table.method.overhead_ms == pytest.approx(0.01 + len(OVERHEAD) / 1e5)
    assert not any(entry.unstable for entry in table.entries.values())


def test_what_repeats_is_measured_once() -> None:
    backend = FakeBackend()
    measure(SIGNATURES * 3, backend)
    assert measured_models(backend) == models(SIGNATURES)


def test_only_what_the_table_lacks_is_measured() -> None:
    first = measure(SIGNATURES[:2], FakeBackend())
    backend = FakeBackend()
    extended = measure(SIGNATURES, backend, table=first)
    assert measured_models(backend) == models(SIGNATURES[2:])
    assert len(first) == 2
    assert len(extended) == len(SIGNATURES)


def test_a_complete_table_needs_no_measuring() -> None:
    table = measure(SIGNATURES, FakeBackend())
    backend = FakeBackend()
    assert measure(SIGNATURES[:3], backend, table=table) == table
    assert backend.built == []


def test_the_order_of_the_signatures_does_not_matter() -> None:
    assert measure(SIGNATURES, FakeBackend()) == measure(SIGNATURES[::-1], FakeBackend())


def test_sessions_live_in_chunks_and_are_closed() -> None:
    backend = FakeBackend()
    measure([conv(3, channels) for channels in range(1, CHUNK_ENTRIES + 10)], backend)
    assert backend.most_live == CHUNK_ENTRIES
    assert backend.live == 0


def test_large_tensors_are_not_held_side_by_side() -> None:
    large = {"op": "scale", "in_size": (512, 512), "in_channels": 600, "out_channels": 600}
    backend = FakeBackend()
    measure([OperatorSignature(batch=1, **large, residual=residual) for residual in (False, True)], backend)
    assert backend.most_live == 1


def test_progress_counts_what_is_wanted() -> None:
    table = measure(SIGNATURES[:2], FakeBackend())
    seen = []
    measure(SIGNATURES, FakeBackend(), table=table, progress=lambda *report: seen.append(report))
    expected = [(done, 6, signature.key) for done, signature in enumerate(sorted(SIGNATURES)[2:], start=3)]
    assert seen == expected


def shaky(calm_after_ms: float) -> Machine:
    """A machine whose rounds differ wildly until some time has passed."""
    rng = np.random.default_rng(0)
    return Machine(lambda now_ms: 1.0 if now_ms > calm_after_ms else 1 + rng.exponential(3.0))


def test_an_unstable_entry_is_measured_again_until_it_is_stable() -> None:
    signature = conv(40, 40)
    table = measure([signature], FakeBackend(machine=shaky(1200)))
    entry = table.entries[signature.key]
    assert entry.n > 15
    assert not entry.unstable
    assert entry.ms + table.method.overhead_ms == pytest.approx(model_ms(operator_model(signature)))


def test_an_entry_that_stays_unstable_is_flagged() -> None:
    signature = conv(40, 40)
    entry = measure([signature], FakeBackend(machine=shaky(float("inf")))).entries[signature.key]
    assert entry.n == 45  # three attempts of five rounds of three samples
    assert entry.unstable
    assert entry.spread > 0.025


@pytest.mark.parametrize("drifted", [0, 2, 3])
def test_an_entry_without_a_round_at_one_speed_is_flagged_however_small_its_spread(
    monkeypatch: pytest.MonkeyPatch, drifted: int
) -> None:
    timing = Timing((1.0, 1.0, 1.0), 9, drifted=drifted)
    monkeypatch.setattr(
        "latency_tables.measuring.measure.time_interleaved", lambda runners, **_: dict.fromkeys(runners, timing)
    )
    (entry,) = measure([conv()], FakeBackend()).entries.values()
    assert (entry.drifted, entry.unstable) == (drifted, drifted == 3)


def test_the_method_says_how_the_machine_was_watched() -> None:
    assert measure([conv()], FakeBackend()).method.drift_limit == 0.03


OVERHEAD_MS = 250  # what measuring the overhead takes on the fake machine, slow as it is then


def test_an_operator_cheaper_than_the_overhead_costs_nothing() -> None:
    slow_at_first = Machine(lambda now_ms: 10.0 if now_ms < OVERHEAD_MS else 0.01)  # until the overhead is measured
    table = measure(SIGNATURES[:1], FakeBackend(machine=slow_at_first))
    assert table.ms(SIGNATURES[0]) == 0


def test_a_foreign_table_is_refused_unless_told_otherwise() -> None:
    table = measure(SIGNATURES[:1], FakeBackend(device="slide rule"))
    sentence = r"device 'slide rule', but here device is 'abacus'; .* or pass check_environment=False"
    with pytest.raises(TableMismatchError, match=sentence):
        measure(SIGNATURES, FakeBackend(), table=table)
    extended = measure(SIGNATURES, FakeBackend(), table=table, check_environment=False)
    assert len(extended) == len(SIGNATURES)


class RefusingBackend(FakeBackend):
    def build(self, onnx_model: bytes) -> FakeRunner:
        if len(self.built) == 3:
            raise TableError("no such kernel.")
        return super().build(onnx_model)


def test_a_refused_operator_is_named_and_nothing_stays_open() -> None:
    backend = RefusingBackend()
    with pytest.raises(TableError, match=r"cannot measure 'conv 1x3x11x7 -> 4 .*': no such kernel"):
        measure(SIGNATURES, backend)
    assert backend.live == 0


def test_a_chunk_gives_a_sign_of_life_before_each_build_and_after_each_round() -> None:
    signs: list[str | None] = []
    backend = FakeBackend()
    measure_chunk(SIGNATURES[:2], backend, measured_method(backend), announce=signs.append)
    assert signs == [SIGNATURES[0].key, SIGNATURES[1].key, *[None] * 6]


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(TableError, match=r"rounds \(=1\) must be at least 3"):
        measure(SIGNATURES, FakeBackend(), rounds=1)


def test_an_empty_table_is_extended_like_any_other() -> None:
    empty = replace(measure(SIGNATURES[:1], FakeBackend()), entries={})
    assert len(measure(SIGNATURES, FakeBackend(), table=empty)) == len(SIGNATURES)
