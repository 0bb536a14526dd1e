"""Engines, built by tensorrt_rtx without a GPU."""

import hashlib
import os
import signal

import pytest
from onnx import TensorProto
from onnx_models import chain_model, product_model, quantized_model, residual_model, unsupported_model

from depthcomp_errors import BackendUnavailableError, EngineError
from latency_tables.backends.tensorrt import BuildSpec, build_engine, gpu_is_visible
from latency_tables.backends.tensorrt import build as building
from latency_tables.backends.tensorrt.library import new_log
from latency_tables.backends.tensorrt.runner import load_engine

pytestmark = pytest.mark.whole

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
ADA = BuildSpec(targets=(89,))


def parsed(data):
    """Return what the parser alone says to a model, and its network."""
    log = new_log(trt)
    network = trt.Builder(log).create_network(0)
    return trt.OnnxParser(network, log).parse(data), network


def test_the_parser_alone_takes_nothing_for_a_network():
    accepted, network = parsed(b"")
    assert accepted
    assert network.num_layers == network.num_outputs == 0
    with pytest.raises(EngineError, match="the model is empty"):
        build_engine(b"", ADA)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (chain_model("Relu", opset=99), "uses opset 99"),
        (chain_model("Relu", dtype=TensorProto.DOUBLE), "float64, which TensorRT cannot compute"),
    ],
)
def test_the_parser_alone_takes_what_is_refused_here(model, sentence):
    accepted, network = parsed(model)
    assert accepted
    assert network.num_layers == 1
    with pytest.raises(EngineError, match=sentence):
        build_engine(model, ADA)


def test_all_nodes_that_the_parser_refuses_are_named():
    model = unsupported_model()
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot parse the model: node 'a' \(Det\): \w+") as caught:
        build_engine(model, ADA)
    assert "node 'b' (Det)" in str(caught.value)


def test_asymmetric_quantization_is_refused_by_name():
    with pytest.raises(EngineError, match=r"cannot parse the model: node '(de)?quantize' \((De|Q)\w+Linear\)"):
        build_engine(quantized_model(3), BuildSpec(precision="int8", targets=(89,)))


def kernel_of(onnx_node, plan):
    """Return the kernel that does the work of a node."""
    (kernel,) = (kernel for kernel in plan.kernels if onnx_node in kernel.onnx_nodes)
    return kernel


def test_symmetric_quantization_is_built():
    plan = build_engine(quantized_model(0), BuildSpec(precision="int8", targets=(89,))).plan
    assert kernel_of("conv", plan).inputs[0].dtype == "Int8"


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_convolution_addition_and_activation_are_one_kernel(dtype):
    precision = "fp16" if dtype == TensorProto.FLOAT16 else "fp32"
    plan = build_engine(residual_model(dtype), BuildSpec(precision=precision, targets=(89,))).plan
    assert kernel_of("conv", plan) is kernel_of("add", plan) is kernel_of("relu", plan)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_part_of_a_network_needs_no_layout_changes_where_its_ends_are_channels_last(dtype):
    precision = "fp16" if dtype == TensorProto.FLOAT16 else "fp32"
    plain, inner = (
        build_engine(residual_model(dtype), BuildSpec(precision=precision, targets=(89,), channels_last_io=last)).plan
        for last in (False, True)
    )
    assert plain.layout_changes > 0
    assert inner.layout_changes == 0
    assert len(inner.kernels) == 1


def test_turing_takes_fp16_and_says_so_where_it_is_asked_for_fp32():
    model = product_model(TensorProto.FLOAT)
    with pytest.raises(EngineError, match=r"SM75.*FP32 GEMM.*; Turing \(75\) takes no fp32 matrix products.*fp16"):
        build_engine(model, BuildSpec(targets=(75,)))
    half = BuildSpec(precision="fp16", targets=(75,))
    assert build_engine(product_model(TensorProto.FLOAT16), half).plan.kernels


def test_a_failed_build_leaves_the_next_one_as_it_would_have_been():
    clean = build_engine(residual_model(), ADA).plan
    with pytest.raises(EngineError, match="Turing"):
        build_engine(product_model(TensorProto.FLOAT), BuildSpec(targets=(75,)))
    assert build_engine(residual_model(), ADA).plan == clean


def test_a_target_that_the_library_does_not_know_is_answered_with_those_it_knows():
    with pytest.raises(EngineError, match=r"GPUs of compute capability 90; choose from 75, 80, 86, 89, 120"):
        build_engine(residual_model(), BuildSpec(targets=(90,)))


def test_a_dynamic_batch_is_built_with_a_profile():
    engine = build_engine(chain_model("Relu", shape=("batch", 3)), BuildSpec(targets=(89,), batch=(1, 8, 32)))
    assert engine.inputs == {"x": ("batch", 3)}
    assert engine.plan.kernels


def test_one_engine_for_several_targets():
    one, several = (
        build_engine(residual_model(), BuildSpec(targets=targets)) for targets in [(89,), (80, 86, 89, 120)]
    )
    assert len(several.plan.kernels) == len(one.plan.kernels)


def test_model_and_specification_identify_an_engine():
    model = residual_model()
    first, second = (build_engine(model, ADA) for _ in range(2))
    assert first.onnx_sha256 == second.onnx_sha256 == hashlib.sha256(model).hexdigest()
    assert first.spec.sha256() == second.spec.sha256()
    assert first.version == trt.__version__


def test_the_specification_reaches_the_builder():
    builder = trt.Builder(new_log(trt))
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32), "TF32 is TensorRT's default"
    config = building._config(trt, builder, BuildSpec(targets=(86, 89), tf32=False, aux_streams=0, timing_iterations=3))
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert (config.max_aux_streams, config.avg_timing_iterations, config.num_compute_capabilities) == (0, 3, 2)
    assert config.get_compute_capability(1) == trt.ComputeCapability.SM89
    assert building._config(trt, builder, BuildSpec()).get_flag(trt.BuilderFlag.TF32)


def test_progress_grows_towards_a_thousand():
    seen = []
    build_engine(residual_model(), ADA, lambda *call: seen.append(call))
    parts = [done for done, _, _ in seen]
    assert parts == sorted(parts)
    assert 0 < parts[-1] <= 1000
    assert {total for _, total, _ in seen} == {1000}


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_stops_the_build_and_the_handler_comes_back():
    seen = []

    def interrupt(*call):
        seen.append(call)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        build_engine(residual_model(), ADA, interrupt)
    assert len(seen) == 1, "the build went on"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_progress_function_stops_the_build_and_comes_out():
    def broken(*_):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build_engine(residual_model(), ADA, broken)


@pytest.mark.skipif(gpu_is_visible(), reason="there is a GPU here")
def test_an_engine_does_not_load_without_a_gpu_and_the_driver_is_named():
    engine = build_engine(residual_model(), ADA)
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA GPU with a working driver .*CUDA driver version"):
        load_engine(trt, engine.data)


@pytest.mark.skipif(gpu_is_visible(), reason="there is a GPU here")
def test_the_library_alone_gives_no_reason_why_an_engine_is_invalid():
    """That is why the reason is taken from its log, and the GPU named."""
    engine = build_engine(residual_model(), ADA)
    runtime = trt.Runtime(new_log(trt))
    assert runtime is not None
    assert runtime.deserialize_cuda_engine(engine.data) is None
    validity, diagnostics = runtime.get_engine_validity(engine.data)
    assert (validity.name, diagnostics) == ("INVALID", 0)


def test_a_bf16_convolution_is_refused_with_its_node_named():
    with pytest.raises(EngineError, match=r"no valid ONNX .*node name: conv.* unsupported type: tensor\(bfloat16\)"):
        build_engine(residual_model(TensorProto.BFLOAT16), ADA)
