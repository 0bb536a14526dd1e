import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, conv
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables import as_backend, create_backend, measure
from latency_tables.operators import operator_model


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
def test_only_static_float32_is_measured(model: bytes) -> None:
    with pytest.raises(TableError, match=r"tensor 'x' of the model is .* needs float32 with a static shape"):
        create_backend("onnxruntime").build(model)


def test_importing_the_room_loads_neither_onnxruntime_nor_torch() -> None:
    program = "import sys, latency_tables; print({'onnxruntime', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
