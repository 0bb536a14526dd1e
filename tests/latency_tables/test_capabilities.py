"""What a backend may offer besides the protocol reaches the measurement, and is not missed where it is not there."""

from dataclasses import dataclass, field

import pytest
from fake_backend import FakeBackend, FakeRunner, conv
from onnx import TensorProto
from onnx_models import residual_model

from latency_tables import create_backend, measure
from latency_tables.backends.capabilities import (
    KeepsTimings,
    KnowsLayoutShare,
    ReadsDeviceState,
    RestoresCaches,
    RunsParts,
    device_state,
    keep_timings_beside,
    part_runner_of,
)
from latency_tables.backends.part import PartRunner
from latency_tables.backends.tensorrt import build as building
from latency_tables.measuring.journal import Journal
from latency_tables.measuring.measure import measured_method
from latency_tables.operators.subjects import Operator
from latency_tables.tables.table import LatencyTable

pytestmark = pytest.mark.whole


@dataclass
class DeviceBackend(FakeBackend):
    parts: list[bytes] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def build_part(self, onnx_model):
        self.parts.append(onnx_model)
        return super().build(onnx_model)

    def device_state(self):
        return {"sm_clock_mhz": 1410, "throttle_reasons": "none"}

    def keep_timings_beside(self, file):
        self.kept.append(file.name)


def test_operators_of_a_table_are_parts_and_the_state_of_the_device_is_stored(tmp_path):
    backend = DeviceBackend()
    table = measure([conv()], backend, journal=tmp_path / "j.jsonl")
    assert len(backend.parts) == len(backend.built) == 2, "the call overhead and the operator"
    assert backend.kept == ["j.jsonl"]
    assert table.method.device_state == {"sm_clock_mhz": 1410, "throttle_reasons": "none"}
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json").method == table.method
    assert Journal(tmp_path / "j.jsonl", backend.environment()).content().method == table.method


def test_a_backend_without_capabilities_lacks_nothing(tmp_path):
    backend = FakeBackend()
    keep_timings_beside(backend, tmp_path)
    assert device_state(backend) is None
    assert measured_method(backend).device_state is None
    part_runner_of(Operator(conv()), backend)
    assert len(backend.built) == 2, "the call overhead and the part"


def capabilities_of(something):
    known = (RunsParts, RestoresCaches, KnowsLayoutShare, ReadsDeviceState, KeepsTimings)
    return {capability for capability in known if isinstance(something, capability)}


def test_capabilities_are_those_of_the_methods_that_a_class_defines():
    assert capabilities_of(FakeBackend()) == capabilities_of(FakeRunner("whole", 1.0)) == set()
    assert capabilities_of(DeviceBackend()) == {RunsParts, ReadsDeviceState, KeepsTimings}
    assert capabilities_of(create_backend("tensorrt")) == {RunsParts, ReadsDeviceState, KeepsTimings}
    assert capabilities_of(create_backend("onnxruntime")) == capabilities_of(create_backend("openvino")) == {RunsParts}
    part = PartRunner(FakeRunner("part", 1.0), FakeRunner("idle", 1.0))
    assert capabilities_of(part) == {RestoresCaches, KnowsLayoutShare}


def test_tensorrt_gives_parts_their_own_layouts_and_whole_networks_their_users(monkeypatch):
    from latency_tables.backends.tensorrt import backend as module

    specs = []

    def build_engine(model, spec, *, timing_cache):
        specs.append(spec)
        return building.Engine(b"engine", spec, "1", "", {}, {}, None, ())

    monkeypatch.setattr(module, "cuda", lambda: None)
    monkeypatch.setattr(module, "load_library", lambda flavour: None)
    monkeypatch.setattr(module, "build_engine", build_engine)
    monkeypatch.setattr(module, "TensorRtRunner", lambda trt, data: data)
    backend = module.TensorRtBackend("tensorrt_rtx")
    backend.build(residual_model())
    backend.build_part(residual_model())
    backend.build(residual_model(TensorProto.FLOAT16))
    assert [spec.channels_last_io for spec in specs] == [False, True, False]
    assert [spec.precision for spec in specs] == ["fp32", "fp32", "fp16"]
    assert {spec.aux_streams for spec in specs} == {0}
