import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from fake_backend import conv
from onnx import TensorProto
from onnx_models import index_model
from test_onnxruntime_backend import relu_model

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables import OperatorSignature, create_backend, measure
from latency_tables.backends.openvino import OpenVinoBackend
from latency_tables.measuring.measure import measured_method
from latency_tables.operators.models import operator_model

pytestmark = pytest.mark.whole


def test_a_table_is_measured_and_comes_back_from_disk(tmp_path: Path) -> None:
    signatures = [conv(16, 16, in_size=(31, 29)), conv(64, 64, in_size=(31, 29), residual=True, activation="relu")]
    table = measure(signatures, create_backend("openvino"))
    table.save(tmp_path / "table.json")
    loaded = type(table).load(tmp_path / "table.json")
    assert loaded == table
    assert 0 < loaded.ms(signatures[0]) < loaded.ms(signatures[1])


def test_the_call_overhead_is_measured() -> None:
    method = measured_method(create_backend("openvino"))
    assert 0 < method.overhead_ms < 100


def test_the_environment_tells_threads_and_version() -> None:
    environment = create_backend("openvino", threads=2).environment()
    assert (environment.backend, environment.threads, environment.precision) == ("openvino", 2, "fp32")
    assert openvino.__version__.startswith(environment.backend_version)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_asked_for_is_what_openvino_reports(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    compiled = []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda *given: compiled.append(compile_model(*given)) or compiled[-1]
    )
    create_backend("openvino", threads=threads).build(operator_model(conv())).close()
    names = ["PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT"]
    found = [compiled[0].get_property(name) for name in names]
    assert found[:3] == ["LATENCY", 1, threads]
    assert found[3].get_type_name() == "f32"


def test_the_arithmetic_is_that_of_float32() -> None:
    """bf16, which OpenVINO chooses by itself where the processor has it, is off by a thousand times as much."""
    model = operator_model(conv(64, 64))
    runner = OpenVinoBackend().build(model)
    runner.time_ms(1)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": runner.inputs[0]})[0]
    np.testing.assert_allclose(runner.outputs[0], wanted, atol=1e-5 * float(np.abs(wanted).max()))
    runner.close()


def test_another_precision_than_f32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino.CompiledModel, "get_property", lambda self, name: openvino.Type.bf16)
    with pytest.raises(BackendUnavailableError, match="computes in bf16 here although f32 is asked for"):
        create_backend("openvino").build(relu_model())


def test_the_process_stays_as_it_was() -> None:
    places = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    runner = create_backend("openvino", threads=2).build(operator_model(conv()))
    assert runner.time_ms(3) > 0
    runner.close()
    assert places is None or os.sched_getaffinity(0) == places
    assert np.float32(1e-40) * np.float32(1.0) > 0  # denormals survive


@pytest.mark.parametrize("operator", [b"", b"Relu", b"Lure"], ids=["garbage", "cut", "operator"])
def test_a_refused_model_is_answered_in_one_line(operator: bytes) -> None:
    model = relu_model().replace(b"Relu", operator) if operator != b"Relu" else relu_model()[:-20]
    with pytest.raises(TableError, match=r"openvino [\d.]+ refuses the model: \S.*") as caught:
        create_backend("openvino").build(model)
    assert "Exception from" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model", [relu_model(shape=("batch", 3)), relu_model(dtype=TensorProto.DOUBLE)], ids=["dynamic", "double"]
)
def test_dynamic_shapes_and_doubles_are_not_measured(model: bytes) -> None:
    with pytest.raises(TableError, match=r"tensor 'x' of the model is .* needs float32, integers or booleans"):
        create_backend("openvino").build(model)


def test_integers_and_booleans_are_inputs_and_outputs() -> None:
    assert create_backend("openvino").build(index_model()).time_ms(2) > 0


def test_no_threads_are_refused() -> None:
    with pytest.raises(BackendUnavailableError, match=r"threads \(=0\) must be at least 1"):
        create_backend("openvino", threads=0)


def test_a_missing_package_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'depthcomp\[openvino\]'"):
        create_backend("openvino").environment()


PROGRAM = """
import sys
import latency_tables
from latency_tables.backends import BACKEND_NAMES
assert "openvino" in BACKEND_NAMES and "openvino" not in sys.modules
latency_tables.create_backend("openvino").environment()
assert "openvino" in sys.modules
print({name for name in sys.modules if name.startswith("openvino_telemetry") or name == "torch"})
"""


def test_openvino_is_loaded_when_it_is_used_and_reports_to_no_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("set()", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_telemetry_that_is_there_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", there)
    create_backend("openvino").environment()
    assert sys.modules["openvino_telemetry"] is there


def test_one_core_serves_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last core to go unloads its plugins; TensorRT's next exception then ended the process."""
    made = []
    create = openvino.Core
    monkeypatch.setattr(openvino, "Core", lambda: made.append(create()) or made[-1])
    for _ in range(2):
        create_backend("openvino").build(relu_model()).close()
    assert len(made) <= 1


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (5, 3)])
def test_a_linear_layer_is_measured_at_the_pixels_that_it_reads(size: tuple[int, int]) -> None:
    signature = OperatorSignature(op="linear", batch=1, in_channels=48, out_channels=24, in_size=size, residual=True)
    table = measure([signature], create_backend("openvino", threads=1))
    assert signature in table
    assert not table.failures
