"""What can be refused before TensorRT is even there: specifications and models."""

import re

import pytest
from onnx import TensorProto
from onnx_models import chain_model, model_of, quantized_model, residual_model

from depthcomp_errors import EngineError
from latency_tables.backends.tensorrt import BuildSpec, flavour_of
from latency_tables.backends.tensorrt.fused_plan import read_plan
from latency_tables.backends.tensorrt.onnx_check import checked_model

pytestmark = pytest.mark.whole

SHAPES = {"x": ("batch", 3, 224, 224)}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"flavour": "trt"}, r"flavour \(='trt'\) must be one of tensorrt, tensorrt_rtx"),
        ({"precision": "bf16"}, r"precision \(='bf16'\) must be one of fp32, fp16, int8"),
        ({"flavour": "tensorrt", "targets": (89,)}, r"targets \(=\(89,\)\) can be named with tensorrt-rtx only"),
        ({"targets": (89, 89)}, "must name each compute capability once"),
        ({"batch": (8, 1, 32)}, r"batch \(=\(8, 1, 32\)\) must be smallest, typical, largest"),
        ({"batch": (0, 1, 2)}, "with 1 <= smallest"),
        ({"timing_iterations": 0}, r"timing_iterations \(=0\) must be at least 1"),
        ({"aux_streams": -1}, r"aux_streams \(=-1\) must be at least 0, or None"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(fields, sentence):
    with pytest.raises(EngineError, match=sentence):
        BuildSpec(**fields)


def test_the_flavour_is_known_by_both_spellings():
    assert flavour_of("tensorrt-rtx") == flavour_of("tensorrt_rtx") == "tensorrt_rtx"
    with pytest.raises(EngineError, match="'trt' is no flavour of TensorRT; choose tensorrt or tensorrt-rtx"):
        flavour_of("trt")


def test_the_hash_tells_specifications_apart_and_not_objects():
    assert BuildSpec(targets=(86,)).sha256() == BuildSpec(targets=(86,)).sha256()
    others = [BuildSpec(), BuildSpec(tf32=False), BuildSpec(targets=(86,)), BuildSpec(batch=(1, 2, 3))]
    assert len({spec.sha256() for spec in others}) == len(others)


def test_the_equivalent_line_for_trtexec():
    spec = BuildSpec(flavour="tensorrt", precision="fp16", batch=(1, 8, 32), tf32=False, aux_streams=0)
    assert spec.command("m.onnx", "m.engine", SHAPES) == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference --stronglyTyped --avgTiming=8"
        " --minShapes=x:1x3x224x224 --optShapes=x:8x3x224x224 --maxShapes=x:32x3x224x224 --maxAuxStreams=0 --noTF32"
    )


def test_the_equivalent_line_for_tensorrt_rtx():
    line = BuildSpec(targets=(86, 89)).command("m.onnx", "m.engine", SHAPES)
    assert line == "tensorrt_rtx --onnx=m.onnx --saveEngine=m.engine --skipInference --computeCapabilities=86,89"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (b"", r"the model is empty \(0 bytes\)"),
        (b"no model at all", "the 15 bytes are no ONNX model"),
        (
            chain_model("Relu", opset=99),
            r"uses opset 99 and onnx [\d.]+ knows up to \d+; export it with that or an older",
        ),
        (chain_model("Relu", dtype=TensorProto.DOUBLE), "'x' is float64, which TensorRT cannot compute"),
        (model_of([], (1, 3), ()), "no nodes or no outputs"),
        (chain_model("Relu", "Nonsense"), "no valid ONNX .*Nonsense"),
    ],
    ids=["empty", "garbage", "opset", "double", "no-outputs", "operator"],
)
def test_a_model_that_the_parser_would_swallow_is_refused(model, sentence):
    with pytest.raises(EngineError, match=sentence):
        checked_model(model, BuildSpec())


@pytest.mark.parametrize(
    ("model", "precision", "sentence"),
    [
        (chain_model("Relu"), "fp16", "precision is fp16, but 'x' is not; export the model in fp16"),
        (chain_model("Relu", dtype=TensorProto.FLOAT16), "fp32", "precision is fp32, but 'x' is not"),
        (chain_model("Relu"), "int8", "precision is int8, but the model has no QuantizeLinear nodes"),
        (quantized_model(0), "fp32", "precision is fp32, but the model has QuantizeLinear nodes"),
    ],
)
def test_the_precision_is_the_models_own(model, precision, sentence):
    with pytest.raises(EngineError, match=sentence):
        checked_model(model, BuildSpec(precision=precision))


def test_a_dynamic_batch_needs_a_profile_and_a_profile_a_dynamic_batch():
    with pytest.raises(EngineError, match=r"'x' has the dynamic shape \('batch', 3\); give the smallest, typical"):
        checked_model(chain_model("Relu", shape=("batch", 3)), BuildSpec())
    with pytest.raises(EngineError, match=r"batch \(=\(1, 2, 3\)\) needs a model with a dynamic batch"):
        checked_model(chain_model("Relu"), BuildSpec(batch=(1, 2, 3)))
    with pytest.raises(EngineError, match="only the first dimension may be dynamic"):
        checked_model(chain_model("Relu", shape=("batch", "width")), BuildSpec(batch=(1, 2, 3)))


def test_a_file_is_read_and_one_that_is_missing_or_foreign_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(EngineError, match=rf"cannot read {re.escape(str(path))}: No such file"):
        checked_model(path, BuildSpec())
    path.write_bytes(b"no model at all")
    with pytest.raises(EngineError, match=r"m\.onnx is no ONNX file"):
        checked_model(path, BuildSpec())
    path.write_bytes(residual_model())
    assert [node.name for node in checked_model(path, BuildSpec()).graph.node] == ["conv", "add", "relu"]


def test_a_log_without_a_list_of_kernels_gives_no_plan():
    assert read_plan(["Engine generation completed in 1 s", "Layers: none"]) is None


def listed(name, kind, inputs, outputs, nodes=""):
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{inputs}], Constants: [], Outputs: [{outputs}], "
        f"TacticName: t, StreamId: 0, Metadata: {nodes}"
    )


def listed_tensor(name, layout):
    return (
        f" {{ Name: {name}, Dimensions: [1,3,7,7], Strides: [147,49,7,1], StrideOrder: [3,2,1,0], Datatype: Half, "
        f"Format: ({layout}) words }}"
    )


def test_the_list_of_kernels_is_read():
    x, t = listed_tensor("x", "Linear"), listed_tensor("t", "NHWC")
    lines = [
        "Layers:",
        listed("shapes", "shape_call", "", ""),
        listed("move", "kgen", x, t),
        listed("conv", "correlation", t, t, "[ONNX Layer: c[0]][ONNX Layer: relu][ONNX Layer: relu]"),
    ]
    plan = read_plan(["other", "\n".join(lines)])
    assert [kernel.name for kernel in plan.kernels] == ["move", "conv"]
    assert plan.layout_changes == 1
    assert plan.kernels[1].onnx_nodes == ("c[0]", "relu")
    assert plan.kernels[1].kind == "correlation"
    assert plan.kernels[0].inputs[0].shape == (1, 3, 7, 7)
    assert (plan.kernels[0].inputs[0].dtype, plan.kernels[0].outputs[0].layout) == ("Half", "NHWC")
