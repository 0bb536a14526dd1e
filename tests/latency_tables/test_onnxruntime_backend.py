import logging
import mmap
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fake_backend import FakeBackend, conv
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx_models import index_model

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables import as_backend, create_backend, measure, time_interleaved
from latency_tables.backends import onnxruntime as ort_backend
from latency_tables.backends.onnxruntime import FLAVOURS, OnnxRuntimeBackend
from latency_tables.backends.tensorrt import gpu_is_visible
from latency_tables.operators.models import operator_model

pytestmark = pytest.mark.whole


def relu_model(dtype: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = (1, 3), opset: int = 20) -> bytes:
    ends = [make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = make_graph([make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    return make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=9).SerializeToString()


def test_a_model_is_timed() -> None:
    runner = create_backend("onnxruntime").build(operator_model(conv(residual=True, activation="relu")))
    assert runner.time_ms(3) > 0
    runner.close()


def test_a_table_is_measured_and_comes_back_from_disk(tmp_path: Path) -> None:
    signatures = [conv(16, 16, in_size=(31, 29)), conv(64, 64, in_size=(31, 29))]
    table = measure(signatures, create_backend())
    table.save(tmp_path / "table.json")
    loaded = type(table).load(tmp_path / "table.json")
    assert loaded == table
    assert 0 < loaded.ms(signatures[0]) < loaded.ms(signatures[1])


def test_the_environment_tells_threads_and_version() -> None:
    environment = create_backend("onnxruntime", threads=2).environment()
    assert environment.threads == 2
    assert environment.backend_version == __import__("onnxruntime").__version__


def test_denormals_survive_a_session() -> None:
    create_backend().build(operator_model(conv())).close()
    assert np.float32(1e-40) * np.float32(1.0) > 0


def test_auto_says_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert create_backend("auto").name == "onnxruntime"
    assert "backend 'auto' is 'onnxruntime'" in caplog.text


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BackendUnavailableError, match="'tvm' is unknown; choose one of auto, onnxruntime"):
        create_backend("tvm")


def test_a_backend_is_itself_and_a_name_its_backend() -> None:
    backend = FakeBackend()
    assert as_backend(backend) is backend
    assert as_backend("auto").name == as_backend("onnxruntime").name == "onnxruntime"
    with pytest.raises(BackendUnavailableError, match="'tvm' is unknown; choose one of auto, onnxruntime"):
        as_backend("tvm")


@pytest.mark.parametrize("given", [3, None, ["onnxruntime"], FakeBackend, type(create_backend()), object()])
def test_what_is_no_backend_is_answered_with_the_known_ones(given: Any) -> None:
    sentence = r"backend \(=.*\) must be one of auto, onnxruntime, .*or an instance such as create_backend"
    with pytest.raises(BackendUnavailableError, match=sentence):
        as_backend(given)


def test_no_threads_are_refused() -> None:
    with pytest.raises(BackendUnavailableError, match=r"threads \(=0\) must be at least 1"):
        create_backend("onnxruntime", threads=0)


def test_a_missing_package_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="pip install onnxruntime"):
        create_backend("onnxruntime").build(relu_model())


@pytest.mark.parametrize("model", [b"not a model", relu_model(opset=99)], ids=["garbage", "opset"])
def test_a_refused_model_carries_the_words_of_onnxruntime(model: bytes) -> None:
    with pytest.raises(TableError, match=r"onnxruntime [\d.]+ refuses the model: .*"):
        create_backend("onnxruntime").build(model)


@pytest.mark.parametrize(
    "model", [relu_model(shape=("batch", 3)), relu_model(dtype=TensorProto.DOUBLE)], ids=["dynamic", "double"]
)
def test_dynamic_shapes_and_doubles_are_not_measured(model: bytes) -> None:
    with pytest.raises(TableError, match=r"tensor 'x' of the model is .* needs float32, integers or booleans"):
        create_backend("onnxruntime").build(model)


def test_integers_and_booleans_are_inputs_and_outputs() -> None:
    assert create_backend("onnxruntime").build(index_model()).time_ms(2) > 0


def test_importing_the_room_loads_neither_onnxruntime_nor_torch() -> None:
    program = "import sys, latency_tables; print({'onnxruntime', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def sessions_made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list that the sessions are put into."""
    made: list[Any] = []
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, **named: made.append(create(*given, **named)) or made[-1]
    )
    return made


def test_a_session_has_the_configuration_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxRuntimeBackend(threads=2)
    sessions = sessions_made(monkeypatch)
    backend.build(relu_model()).close()
    options = sessions[0].get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    for key, value in FLAVOURS["onnxruntime"].config.items():
        assert options.get_session_config_entry(key) == value


def test_onnxruntime_takes_invented_keys_so_its_library_must_hold_those_that_are_set() -> None:
    invented = "session.intra_op.allow_spinnnig"
    onnxruntime.SessionOptions().add_session_config_entry(invented, "0")  # not a word
    library = Path(onnxruntime.capi.onnxruntime_pybind11_state.__file__)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(invented.encode()) == -1
        for key in {key for flavour in FLAVOURS.values() for key in flavour.config}:
            assert content.find(key.encode()) > -1, key


def idle_cpu_ms(session: Any, feeds: dict[str, Any]) -> float:
    """Return the time that the process computes while it sleeps after an inference: threads that spin do."""
    session.run(None, feeds)
    start = time.process_time_ns()
    time.sleep(0.02)
    return (time.process_time_ns() - start) / 1e6


def test_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a session that spins, in processor time, which does not depend on what else runs here."""
    backend, signature = OnnxRuntimeBackend(threads=2), conv(64, 64, in_size=(31, 29))
    sessions = sessions_made(monkeypatch)
    feeds = {"x": np.zeros((1, 64, 31, 29), np.float32)}
    idle = {}
    for spinning in ("0", "1"):
        monkeypatch.setitem(ort_backend.CONFIG, "session.intra_op.allow_spinning", spinning)
        runner = backend.build(operator_model(signature))
        idle[spinning] = min(idle_cpu_ms(sessions[-1], feeds) for _ in range(10))
        runner.close()
        sessions.clear()
    assert idle["0"] < 0.5 * idle["1"]


@pytest.mark.parametrize("name", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it is there")
def test_a_build_without_the_provider_is_answered_with_the_pip_line(name: str) -> None:
    sentence = rf"'{name}' needs \w+ExecutionProvider, but onnxruntime .* run `pip install onnxruntime-gpu`"
    with pytest.raises(BackendUnavailableError, match=sentence):
        create_backend(name).environment()
    with pytest.raises(BackendUnavailableError, match=sentence):
        create_backend(name).build(relu_model())


@pytest.mark.parametrize("name", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_a_gpu_takes_no_threads(name: str) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"threads \(=2\) must be 1 with {name}: the GPU does the work"):
        create_backend(name, threads=2)


def test_a_session_that_falls_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU build of ONNX Runtime whose CUDA libraries are missing makes such a session without a word."""
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, *_, **__: create(model, providers=["CPUExecutionProvider"])
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort_backend, "cuda", lambda: torch)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    sentence = "runs the model on CPUExecutionProvider, not on CUDAExecutionProvider; install the CUDA libraries"
    with pytest.raises(BackendUnavailableError, match=sentence):
        create_backend("onnxruntime_cuda").build(relu_model())


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_visible(), reason="no NVIDIA GPU with a working driver is visible here")
@pytest.mark.parametrize("name", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_a_gpu_is_measured(name: str) -> None:
    if FLAVOURS[name].provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of onnxruntime lacks {FLAVOURS[name].provider}")
    backend = create_backend(name)
    assert torch.cuda.get_device_name(0) in backend.environment().device
    runners = {str(n): backend.build(operator_model(conv(n, n, in_size=(56, 56)))) for n in (16, 512)}
    timings = time_interleaved(runners)
    assert timings["16"].ms < timings["512"].ms
