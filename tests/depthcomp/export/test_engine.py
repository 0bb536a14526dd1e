"""Engines of whole networks, original and compressed, with their sidecar, built by tensorrt_rtx without a GPU."""

import hashlib
import json
import os
import signal
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from made_result import make_result
from tiny_network import EXAMPLE, images, tiny_net
from typer.testing import CliRunner

from depthcomp.commands.main import app
from depthcomp.errors import ArtifactError, EngineError, MissingPackageError
from depthcomp.export.engine import export_engine, sidecar_of
from depthcomp.export.onnx_model import to_onnx
from depthcomp.export.precision import in_half
from depthcomp.results.stored_network import save_network
from fx_passes import capture, linearize, merge, random_plan
from latency_tables.backends.tensorrt import BuildSpec, build_engine, gpu_is_visible

pytestmark = pytest.mark.whole

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
NETWORKS = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0", num_classes=10),
}
BATCHES = (1, 8, 32)
TARGETS = {"fp32": (80, 86, 89, 120), "fp16": (75, 80, 86, 89, 120)}


@pytest.fixture(scope="module")
def network():
    return capture(tiny_net(), EXAMPLE)


@pytest.fixture(scope="module")
def pair():
    """A function from a name to a network and its compressed form.

    At 64 pixels: the kernels are the same as at 224, and the export is faster.
    """

    @cache
    def build(name):
        torch.manual_seed(0)
        original = capture(NETWORKS[name]().eval(), torch.randn(1, 3, 64, 64))
        plan = random_plan(original, np.random.default_rng(0))
        return original, merge(linearize(original, plan), plan)

    return build


def kernels(model, spec):
    return len(build_engine(model, spec).plan.kernels)


@pytest.mark.parametrize(
    ("name", "precision", "batch"),
    [
        ("mobilenet_v2", "fp32", None),
        ("mobilenet_v2", "fp16", BATCHES),
        ("efficientnet_lite0", "fp32", BATCHES),
        ("efficientnet_lite0", "fp16", None),
        pytest.param("mobilenet_v2", "fp32", BATCHES, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "fp16", None, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", "fp32", None, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", "fp16", BATCHES, marks=pytest.mark.slow),
    ],
)
def test_the_compressed_network_has_fewer_kernels_on_every_target(pair, name, precision, batch):
    nets, x = pair(name), torch.randn(1, 3, 64, 64)
    if precision == "fp16":
        nets, x = [in_half(net) for net in nets], x.half()
    models = [to_onnx(net, (x,), dynamic_batch=batch is not None) for net in nets]
    for target in TARGETS[precision]:
        spec = BuildSpec(precision=precision, targets=(target,), batch=batch)
        before, after = (kernels(model, spec) for model in models)
        print(f"{name} {precision} SM{target} {batch}: {before} -> {after} kernels")
        assert after < before


def test_the_sidecar_says_what_the_engine_is(network, tmp_path):
    path = export_engine(network, (EXAMPLE,), tmp_path / "m.engine", targets=(86, 89), precision="fp16", batch=BATCHES)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.engine", "m.engine.json", "m.engine.onnx"]
    said = sidecar_of(path)
    assert said["onnx_sha256"] == hashlib.sha256((tmp_path / "m.engine.onnx").read_bytes()).hexdigest()
    assert said["spec_sha256"] == BuildSpec(targets=(86, 89), precision="fp16", batch=BATCHES).sha256()
    assert said["spec"]["targets"] == [86, 89]
    assert said["spec"]["tf32"] is True
    assert said["library"].startswith("tensorrt_rtx 1.")
    assert said["gpu"] is None
    assert said["inputs"] == {"input": ["batch", 3, 32, 32]}
    assert said["size_bytes"] == path.stat().st_size
    assert said["kernels"] > said["layout_changes"]
    assert said["relative_error"] < 0.01
    assert said["command"].startswith("tensorrt_rtx --onnx=m.engine.onnx --saveEngine=m.engine")
    assert "--minShapes=input:1x3x32x32" in said["command"]


def test_a_fixed_batch_is_the_engines(network, tmp_path):
    said = sidecar_of(export_engine(network, (EXAMPLE,), tmp_path / "m", targets=(89,), batch=4, tf32=False))
    assert said["inputs"] == {"input": [4, 3, 32, 32]}
    assert said["spec"]["batch"] is None
    assert "--noTF32" in said["command"]


def test_int8_is_built(network, tmp_path):
    said = sidecar_of(export_engine(network, (EXAMPLE,), tmp_path / "m", precision="int8", data=images(8)))
    assert said["spec"]["precision"] == "int8"
    assert said["relative_error_on"] == "calibration images"
    assert 0 < said["relative_error"] < 0.3


def test_the_network_is_not_changed(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_engine(network, (EXAMPLE,), tmp_path / "m", precision="fp16")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.training


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_leaves_no_file(network, tmp_path):
    def interrupt(stage, done, _):
        if stage == "building the engine" and done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        export_engine(network, (EXAMPLE,), tmp_path / "m", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(network, tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*m\.onnx: No such file"):
        export_engine(network, (EXAMPLE,), tmp_path / "missing" / "m")


def test_contradictions_are_refused_before_anything_is_exported(network, tmp_path, monkeypatch):
    monkeypatch.setattr("depthcomp.export.engine.onnx_in_precision", None)
    with pytest.raises(EngineError, match="cannot build for GPUs of compute capability 90"):
        export_engine(network, (EXAMPLE,), tmp_path / "m", targets=(90,))
    with pytest.raises(EngineError, match="'openvino' is no flavour of TensorRT"):
        export_engine(network, (EXAMPLE,), tmp_path / "m", to="openvino")
    for batch in (0, (1, 8), ()):
        with pytest.raises(EngineError, match=r"batch \(=.*\) must be a size, or smallest, typical and largest"):
            export_engine(network, (EXAMPLE,), tmp_path / "m", batch=batch)
    with pytest.raises(EngineError, match=r"timing_cache \(=c\) goes with tensorrt only: tensorrt-rtx times nothing"):
        export_engine(network, (EXAMPLE,), tmp_path / "m", timing_cache="c")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match="pip install tensorrt"):
        export_engine(network, (EXAMPLE,), tmp_path / "m", to="tensorrt")


def test_a_timing_cache_reaches_the_build(folder, monkeypatch):
    asked = []

    def build(model, spec, progress, *, timing_cache):
        asked.append((spec.flavour, timing_cache))
        raise EngineError("enough")

    monkeypatch.setattr("latency_tables.backends.tensorrt.require_buildable", lambda spec: None)
    monkeypatch.setattr("latency_tables.backends.tensorrt.build_engine", build)
    assert "error: enough" in run(folder, "--to", "tensorrt", "--timing-cache", "desktop.cache").stderr
    assert "error: enough" in run(folder, "--to", "tensorrt").stderr
    assert asked == [("tensorrt", Path("desktop.cache")), ("tensorrt", None)]


def test_a_result_exports_its_network(network, tmp_path):
    result = make_result(model=network, example_inputs=(EXAMPLE,))
    path = result.export_engine(tmp_path / "m.engine", precision="fp16", targets=(75,))
    assert sidecar_of(path)["spec"]["targets"] == [75]


@pytest.fixture
def folder(network, tmp_path):
    """What a compression leaves, as far as an export reads it."""
    save_network(network, tmp_path, (EXAMPLE,))
    content = {"example_inputs": [{"shape": [1, 3, 32, 32], "dtype": "float32"}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    return tmp_path


def run(folder, *options):
    return CliRunner().invoke(app, ["export", str(folder), *options])


def test_the_command_writes_an_engine_and_says_so(folder):
    result = run(folder, "--to", "tensorrt-rtx", "--sm", "86,89", "--precision", "fp16", "--batch", "1,8,32")
    assert result.exit_code == 0, result.output
    path = folder / "model.fp16.batch1-8-32.tensorrt-rtx.engine"
    said = sidecar_of(path)
    lines = result.stdout.splitlines()
    assert lines[:3] == [f"wrote {path}", f"wrote {path}.onnx", f"wrote {path}.json"]
    assert lines[3] == f"{said['kernels']} kernels, {said['layout_changes']} of them layout changes"
    assert lines[-1] == f"command for NVIDIA's tool: {said['command']}"
    assert "building the engine" in result.stderr


@pytest.mark.skipif(gpu_is_visible(), reason="there is a GPU here")
def test_the_command_answers_in_a_sentence_where_tensorrt_cannot_build(folder):
    result = run(folder, "--to", "tensorrt")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: tensorrt ")
    assert "pip install tensorrt" in result.stderr or "no NVIDIA GPU" in result.stderr
