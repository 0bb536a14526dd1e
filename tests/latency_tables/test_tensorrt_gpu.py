"""Engines on a GPU: what no test can show without one."""

import pytest
from fake_backend import conv
from onnx_models import chain_model, residual_model

from depthcomp_errors import BackendUnavailableError
from latency_tables import create_backend, measure, time_interleaved
from latency_tables.backends.gpu_state import read_device_state
from latency_tables.backends.tensorrt import FLAVOURS, BuildSpec, build_engine, gpu_is_visible
from latency_tables.operators.models import operator_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu_is_visible(), reason="no NVIDIA GPU with a working driver is visible here"),
]


@pytest.fixture(params=list(FLAVOURS))
def backend(request):
    pytest.importorskip(request.param, reason=f"{FLAVOURS[request.param]} is not installed")
    return create_backend(request.param)


def test_a_model_is_timed_and_time_grows_with_the_number_of_inferences(backend):
    runner = backend.build(residual_model(channels=64, size=56))
    try:
        for _ in range(50):
            runner.time_ms(10)
        one, many = (min(runner.time_ms(inner) for _ in range(20)) for inner in (10, 100))
        assert many == pytest.approx(10 * one, rel=0.2)
    finally:
        runner.close()


def test_the_larger_convolution_takes_longer(backend):
    runners = {str(n): backend.build(operator_model(conv(n, n, in_size=(56, 56)))) for n in (16, 256)}
    timings = time_interleaved(runners, sample_ms=0.25, warmup_ms=200)
    assert timings["16"].ms < timings["256"].ms


def test_the_gpu_tells_its_clocks():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert read_device_state()["sm_clock_mhz"] > 0


def test_a_table_is_measured(backend):
    signature = conv(16, 32, in_size=(31, 29))
    table = measure([signature], backend)
    assert table.ms(signature) > 0
    assert "SM" in table.environment.device
    assert table.method.device_state is None or "throttle_reasons" in table.method.device_state


def test_an_engine_comes_back_from_its_bytes_at_any_batch_it_was_built_for(backend):
    spec = BuildSpec(flavour=backend.name, batch=(1, 8, 32))
    engine = build_engine(chain_model("Relu", shape=("batch", 3)), spec)
    for batch in (1, 32):
        runner = backend.load(engine.data, batch)
        assert runner.time_ms(10) > 0
        runner.close()
    with pytest.raises(BackendUnavailableError, match="does not take batches of 64"):
        backend.load(engine.data, 64)


@pytest.mark.filterwarnings("always::UserWarning")
def test_tensorrt_keeps_a_timing_cache_that_the_next_build_accepts(tmp_path, recwarn):
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    spec, path = BuildSpec(flavour="tensorrt"), tmp_path / "desktop.timing_cache"
    build_engine(residual_model(), spec, timing_cache=path)
    assert path.stat().st_size > 0
    build_engine(residual_model(), spec, timing_cache=path)
    assert not [warning for warning in recwarn if "timing cache" in str(warning.message)]
    path.write_bytes(b"garbage")
    build_engine(residual_model(), spec, timing_cache=path)
    assert path.stat().st_size > len(b"garbage")
