"""A part of a network is timed with the caches as it finds them in the middle of the network."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from fake_backend import FakeRunner

from latency_tables import OperatorSignature, create_backend, time_interleaved
from latency_tables.backends import part as part_module
from latency_tables.backends.layout_share import profiled_runs
from latency_tables.backends.part import SWEPT_BYTES, PartRunner
from latency_tables.operators.models import operator_model

pytestmark = pytest.mark.whole

ADDING = OperatorSignature(
    op="conv", batch=1, in_channels=16, out_channels=24, in_size=(12, 12), kernel=(1, 1), residual=True
)


class Touched:
    """An array that writes down when it is touched."""

    def __init__(self, name, order):
        self.name, self.order = name, order

    def __iadd__(self, value):
        assert value == 0
        self.order.append(self.name)
        return self


@dataclass
class ArrayFake(FakeRunner):
    order: list = field(default_factory=list)

    def __post_init__(self):
        self.inputs = [Touched("input", self.order), Touched("skip", self.order)]
        self.outputs = [Touched("output", self.order)]

    def time_ms(self, inner):
        self.order.append("run")
        return super().time_ms(inner)


class Idle:
    def __init__(self, order):
        self.order = order

    def time_ms(self, inner):
        self.order.append("idle")
        return 0.01

    def close(self):
        raise AssertionError("it is shared by all parts")


def idle(runner):
    return Idle(runner.order)


def test_what_the_part_reads_and_writes_is_touched_last_and_its_input_at_the_very_end(monkeypatch):
    runner = ArrayFake("part", 0.5)
    monkeypatch.setattr(part_module, "_swept", lambda: Touched("sweep", runner.order))
    PartRunner(runner, idle(runner)).restore_caches()
    assert runner.order == ["sweep", "idle", "skip", "output", "input"]


def test_each_sample_of_a_part_is_one_inference_on_restored_caches():
    runner = ArrayFake("part", 0.5)
    timing = time_interleaved({"part": PartRunner(runner, idle(runner))}, rounds=3, sample_ms=1.0, warmup_ms=1.0)[
        "part"
    ]
    assert timing.n == 3 * 6  # three samples of 1 ms are six inferences of 0.5 ms
    assert timing.rounds_ms == pytest.approx([0.5] * 3)
    assert runner.order[-5 * timing.n :] == ["idle", "skip", "output", "input", "run"] * timing.n


@pytest.mark.parametrize(("ms", "samples"), [(1e-3, 15), (0.5, 6), (50.0, 3)])
def test_a_turn_of_a_part_is_neither_endless_nor_a_single_sample(ms, samples):
    runner = ArrayFake("part", ms)
    timing = time_interleaved({"part": PartRunner(runner, idle(runner))}, rounds=3, sample_ms=1.0)["part"]
    assert timing.n == 3 * samples


@pytest.mark.parametrize(("ms", "runs"), [(1e-4, 30), (3.0, 20), (1e4, 10)])
def test_a_profile_lasts_long_enough_and_not_too_long(ms, runs):
    runner = ArrayFake("part", ms)
    assert len(list(profiled_runs(PartRunner(runner, idle(runner))))) == runs
    assert runner.order[-5 * runs :] == ["idle", "skip", "output", "input", "run"] * runs


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_restoring_caches_reaches_the_memory_that_the_library_uses_and_changes_no_value(name):
    part = create_backend(name).build_part(operator_model(ADDING))
    arrays = part._runner
    part.time_ms(1)
    before, first = arrays.outputs[0].copy(), arrays.inputs[0].copy()
    assert np.abs(before).max() > 0  # the library wrote into our array
    part.restore_caches()
    np.testing.assert_array_equal(arrays.outputs[0], before)
    np.testing.assert_array_equal(arrays.inputs[0], first)
    arrays.inputs[0][:] = 0
    arrays.inputs[1][:] = 0
    part.time_ms(1)
    assert np.ptp(arrays.outputs[0], axis=(1, 2) if name == "openvino" else (2, 3)).max() < 1e-6  # the bias alone: read
    part.close()


def test_the_sweep_is_larger_than_the_caches_of_a_core():
    assert part_module._swept().nbytes == SWEPT_BYTES == 12 * 2**20
