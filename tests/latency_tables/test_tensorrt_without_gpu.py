"""What TensorRT does without a GPU or without its package becomes a sentence. No library is needed here."""

import ast
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from onnx_models import chain_model

from depthcomp_errors import BackendUnavailableError, EngineError, MissingPackageError
from latency_tables import create_backend
from latency_tables.backends import gpu_state, onnxruntime, tensorrt
from latency_tables.backends.gpu import gpu_driver
from latency_tables.backends.gpu_state import read_device_state, slowdowns
from latency_tables.backends.tensorrt import library, runner
from latency_tables.backends.tensorrt.build import _network_flags

pytestmark = pytest.mark.whole

NO_GPU = "no NVIDIA GPU with a working driver is visible here"


class Silent:
    def __init__(self):
        pass


def no_builder(log):
    raise TypeError("pybind11::init(): factory function returned nullptr")


class NullRuntime:
    def __init__(self, log):
        severity = types.SimpleNamespace(name="ERROR")
        log.log(severity, "CUDA driver version is insufficient\nfor CUDA runtime version.")

    def deserialize_cuda_engine(self, data):
        return None


def stand_in(version="11.4.0", **members):
    """Return a module that does what TensorRT does on a machine without a GPU."""
    module = types.ModuleType("tensorrt")
    vars(module).update(__version__=version, ILogger=Silent, Builder=no_builder, Runtime=NullRuntime, **members)
    return module


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(library, "gpu_is_visible", lambda: False)
    monkeypatch.setattr(runner, "gpu_is_visible", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in())


@pytest.mark.usefixtures("without_gpu")
def test_a_builder_that_is_a_null_pointer_names_the_gpu():
    spec = tensorrt.BuildSpec(flavour="tensorrt")
    sentence = rf"tensorrt 11\.4\.0 builds an engine only on the GPU that will run it, and {NO_GPU}.*tensorrt-rtx"
    with pytest.raises(BackendUnavailableError, match=sentence):
        tensorrt.build_engine(chain_model("Relu"), spec)
    with pytest.raises(BackendUnavailableError, match=sentence):
        tensorrt.require_buildable(spec)


@pytest.mark.usefixtures("without_gpu")
def test_an_engine_that_loads_as_none_names_the_gpu_and_the_reason():
    sentence = rf"cannot load the engine: {NO_GPU}.*driver version is insufficient for CUDA runtime version\)"
    with pytest.raises(BackendUnavailableError, match=sentence):
        runner.load_engine(stand_in(), b"engine")


def test_an_engine_that_loads_as_none_beside_a_gpu_names_the_engine(monkeypatch):
    monkeypatch.setattr(runner, "gpu_is_visible", lambda: True)
    with pytest.raises(BackendUnavailableError, match="it was built for another GPU or by another version"):
        runner.load_engine(stand_in(), b"engine")


@pytest.mark.parametrize(("flavour", "package"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx-cu13")])
def test_a_missing_package_is_answered_with_the_pip_line(flavour, package, monkeypatch):
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(MissingPackageError, match=f"needs the package {package}; run `pip install {package}`"):
        tensorrt.build_engine(chain_model("Relu"), tensorrt.BuildSpec(flavour=flavour))


def test_a_package_that_does_not_load_is_said(monkeypatch):
    def broken(name):
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(library.importlib, "import_module", broken)
    with pytest.raises(BackendUnavailableError, match=r"installed, but does not load \(libnvinfer\.so\.11.*driver"):
        library.load_library("tensorrt")


def test_onnxruntime_on_another_provider_than_asked_for_is_refused(monkeypatch):
    """It falls back in silence; the first provider tells."""
    session = types.SimpleNamespace(get_providers=lambda: ["FallbackExecutionProvider"])
    fallen_back = MagicMock(__version__="1.0", InferenceSession=lambda *_, **__: session)
    monkeypatch.setattr(onnxruntime, "_library", lambda: fallen_back)
    with pytest.raises(
        BackendUnavailableError, match="runs the model on FallbackExecutionProvider, not on CPUExecution"
    ):
        create_backend("onnxruntime").build(b"model")


def test_only_networks_of_10_ask_for_strong_types():
    flags = {"NetworkDefinitionCreationFlag": types.SimpleNamespace(STRONGLY_TYPED=1)}
    assert _network_flags(stand_in("10.3.0", **flags)) == 2
    assert _network_flags(stand_in("11.0.0")) == 0
    rtx = stand_in("1.7.1")
    rtx.__name__ = "tensorrt_rtx"
    assert _network_flags(rtx) == 0


def test_a_gpu_is_a_folder_of_the_driver_or_counted_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_counted_by", lambda driver: 0)
    assert not library.gpu_is_visible(tmp_path / "missing")
    assert not library.gpu_is_visible(tmp_path)
    (tmp_path / "0000:01:00.0").mkdir()
    assert library.gpu_is_visible(tmp_path)
    monkeypatch.setattr(library, "_counted_by", lambda driver: 2)
    assert library.gpu_is_visible(tmp_path / "missing")


def test_a_driver_that_is_missing_counts_none():
    assert library._counted_by("libno_such_driver.so.1") == 0


def test_auto_takes_tensorrt_where_a_gpu_and_the_package_are(monkeypatch):
    monkeypatch.setattr("latency_tables.backends.registry.gpu_is_visible", lambda: True)
    monkeypatch.setattr("latency_tables.backends.registry.find_spec", lambda name: name == "tensorrt_rtx" or None)
    assert create_backend("auto").name == "tensorrt_rtx"
    assert create_backend("auto", threads=2).name == "onnxruntime"
    monkeypatch.setattr("latency_tables.backends.registry.gpu_is_visible", lambda: False)
    assert create_backend("auto").name == "onnxruntime"


def test_threads_are_refused():
    with pytest.raises(BackendUnavailableError, match=r"threads \(=2\) must be 1 with tensorrt_rtx"):
        create_backend("tensorrt_rtx", threads=2)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_measuring_without_a_gpu_says_so_before_anything_is_built(flavour, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"torch sees no NVIDIA GPU; install the driver .* onnxruntime"):
        create_backend(flavour).build(chain_model("Relu"))


class NvmlError(Exception):
    pass


def nvml(**answers):
    """Return a stand-in for pynvml that gives `answers`, and NVMLError to every other question."""

    class Nvml(types.ModuleType):
        NVMLError = NvmlError
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

        def __getattr__(self, name):
            if not name.startswith("nvml"):
                raise AttributeError(name)

            def answer(*arguments):
                if name not in answers:
                    raise NvmlError(name)
                return answers[name]

            return answer

    return Nvml("pynvml")


def test_the_state_of_the_gpu_is_what_it_tells(monkeypatch):
    asked = {"nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetHandleByIndex": 0}
    told = {"nvmlSystemGetDriverVersion": "580.1", "nvmlDeviceGetPowerUsage": 71000}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**asked, **told))
    assert read_device_state() == {"driver": "580.1", "power_mw": 71000}
    assert gpu_driver() == "580.1"


@pytest.mark.parametrize(
    ("bits", "names", "slow"),
    [
        (0, "none", ()),
        (0x1, "gpu_idle", ()),
        (0x25, "gpu_idle sw_power_cap sw_thermal_slowdown", ("sw_power_cap", "sw_thermal_slowdown")),
        (0x1008, "hw_slowdown 0x1000", ("hw_slowdown", "0x1000")),
    ],
)
def test_reasons_to_throttle_have_names(bits, names, slow, monkeypatch):
    asked = {"nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetHandleByIndex": 0}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**asked, nvmlDeviceGetCurrentClocksThrottleReasons=bits))
    state = read_device_state()
    assert state == {"throttle_reasons": names}
    assert slowdowns(state) == slow


def test_a_gpu_that_tells_nothing_is_not_called_slow():
    assert slowdowns(None) == slowdowns({"power_mw": 71000}) == ()


def test_the_gpu_is_only_asked_never_set():
    tree = ast.parse(Path(gpu_state.__file__).read_text())
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("nvml")}
    assert asked
    assert all(name in ("nvmlInit", "nvmlShutdown") or "Get" in name for name in asked)


def test_without_nvml_or_its_driver_there_is_no_state(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert read_device_state() is None
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=None, nvmlShutdown=None))
    assert read_device_state() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_device_state() is None
    assert gpu_driver() is None


def test_targets_are_not_for_tensorrt():
    with pytest.raises(EngineError, match="tensorrt builds for the GPU that it runs on"):
        tensorrt.BuildSpec(flavour="tensorrt", targets=(89,))
