"""`depthcomp bench`: artefacts side by side, and a sentence for each that cannot be compared."""

import json
import re
import sys
from dataclasses import replace

import onnx
import own_machine
import pytest
import torch
from made_result import make_result
from tiny_network import EXAMPLE, tiny_net
from torch import nn
from typer.testing import CliRunner

from depthcomp.commands.main import app
from depthcomp.export.onnx_model import to_onnx
from depthcomp.results.stored_network import save_network
from depthcomp.results.stored_numbers import result_json
from fx_passes import capture
from latency_tables import Environment
from latency_tables.backends.tensorrt import backend as tensorrt_backend
from latency_tables.backends.tensorrt.backend import TensorRtBackend

pytestmark = pytest.mark.whole

OWN = ("--backend", "own_machine:backend")
SMALL_HEAD = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)).eval()


@pytest.fixture(scope="module")
def network():
    return capture(tiny_net(), EXAMPLE)


@pytest.fixture(scope="module")
def models(network):
    """ONNX bytes of a network, of a faster one, and of the first with a dynamic batch."""
    return {
        "tiny": to_onnx(network, (EXAMPLE,)),
        "faster": to_onnx(SMALL_HEAD, (EXAMPLE,)),
        "any": to_onnx(network, (EXAMPLE,), dynamic_batch=True),
        "half": to_onnx(SMALL_HEAD.half(), (EXAMPLE.half(),)),
        "wide": to_onnx(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 40, 40),)),
    }


@pytest.fixture
def folder(network, models, tmp_path, monkeypatch, arithmetic_backend):
    """A folder as a compression saves it, beside ONNX files, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_machine, "machine", arithmetic_backend)
    monkeypatch.setattr(sys, "path", list(sys.path))
    saved = save_network(network, tmp_path / "saved", (EXAMPLE,))
    (saved / "model.onnx").write_bytes(models["tiny"])
    content = result_json(make_result(example_inputs=(EXAMPLE,)))
    (saved / "result.json").write_text(json.dumps(content))
    for name, data in models.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    return tmp_path


def relu_of_a_scalar():
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ()) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "scalar", ends[:1], ends[1:])
    return onnx.helper.make_model(graph).SerializeToString()


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "160"})


def measured(*arguments, backend=OWN):
    result = run(*arguments, *backend, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("folder")
def test_all_are_timed_in_turns_and_compared_with_the_first(models):
    found = measured("saved", "faster.onnx", "--rounds", "4")
    slow, fast = found["artefacts"]
    machine = own_machine.made[-1]
    assert machine.built == [models["tiny"], models["faster"]]
    assert machine.live == 0, "a runner was left open"
    assert slow["ms"] == pytest.approx(machine.ms(models["tiny"]))
    assert fast["ms"] == pytest.approx(machine.ms(models["faster"]))
    assert (slow["speedup"], fast["speedup"]) == (1, pytest.approx(slow["ms"] / fast["ms"]))
    assert fast["speedup"] > 1.5
    assert (slow["n"], len(slow["rounds_ms"]), slow["spread"], slow["unstable"]) == (12, 4, 0, False)
    assert (found["baseline"], found["rounds"], found["environment"]["device"]) == ("saved", 4, "abacus")
    assert slow["inputs"] == [[1, 3, 32, 32]]
    assert (slow["kind"], slow["precision"], slow["command"]) == ("onnx", "fp32", None)
    assert slow["when_compressed"]["original_ms"] == 12.84
    assert fast["when_compressed"] is None


@pytest.mark.usefixtures("folder")
def test_the_table_says_who_is_how_fast_and_where():
    result = run("saved", "quick=faster.onnx", "--baseline", "quick", *OWN)
    assert result.exit_code == 0, result.output
    assert "against quick" in result.stdout
    assert re.search(r"│ saved +│ +[\d.]+ ms │ +0\.0 % │ +[\d.]+ ms │ +0\.\d\dx │ +21 │", result.stdout)
    assert re.search(r"│ quick +│.*1\.00x", result.stdout)
    assert "arithmetic 1.0, abacus, 1 thread, fp32, input 1x3x32x32; none, Python 3.11" in result.stdout
    assert "saved: 12.84 ms -> 9.80 ms when it was compressed, on onnxruntime" in result.stdout
    assert "NVIDIA" not in result.stdout
    assert "measuring side by side" in result.stderr


@pytest.mark.usefixtures("folder")
def test_one_that_never_becomes_steady_is_flagged_after_three_attempts():
    result = measured("tiny.onnx", "faster.onnx", "--rounds", "3", backend=("--backend", "own_machine:drifting"))
    assert [row["unstable"] for row in result["artefacts"]] == [True, True]
    assert {row["n"] for row in result["artefacts"]} == {27}
    assert "% unstable" in run("tiny.onnx", "--backend", "own_machine:drifting").stdout


@pytest.mark.usefixtures("folder")
def test_a_slowed_down_gpu_is_said():
    own = ("--backend", "own_machine:throttled")
    assert measured("tiny.onnx", backend=own)["device_state"]["sm_clock_mhz"] == 900
    assert "the GPU was slowed down (sw_power_cap)" in run("tiny.onnx", *own).stdout


@pytest.mark.usefixtures("folder")
def test_the_batch_is_that_asked_for():
    found = measured("any.onnx", "saved", "--batch", "3")
    assert [row["inputs"] for row in found["artefacts"]] == [[[3, 3, 32, 32]]] * 2
    first, second = map(onnx.load_from_string, own_machine.made[-1].built)
    assert all(model.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 3 for model in (first, second))
    assert found["artefacts"][0]["ms"] == pytest.approx(found["artefacts"][1]["ms"], rel=0.2)
    assert found["artefacts"][1]["when_compressed"] is None  # it tells the latency of another batch


@pytest.mark.usefixtures("folder")
def test_precisions_are_compared_as_long_as_shapes_agree():
    found = measured("faster.onnx", "half.onnx")
    assert [row["precision"] for row in found["artefacts"]] == ["fp32", "fp16"]
    assert re.search(r"│ half\.onnx +│ +fp16 │", run("faster.onnx", "half.onnx", *OWN).stdout)


def test_an_original_is_named_as_for_compress(folder):
    (folder / "nets_to_bench.py").write_text(
        "from torch import nn\n\ndef net():\n    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU())\n"
        "    model.pretrained_cfg = {'input_size': (3, 32, 32)}\n    return model\n"
    )
    found = measured("nets_to_bench:net", "saved")
    assert [row["name"] for row in found["artefacts"]] == ["nets_to_bench:net", "saved"]
    assert [row["inputs"] for row in measured("net=nets_to_bench:net", "--batch", "2")["artefacts"]] == [
        [[2, 3, 32, 32]]
    ]


@pytest.mark.usefixtures("folder")
def test_torch_times_the_networks_themselves():
    result = run("saved", "again=saved", "--batch", "2", "--backend", "torch", "--rounds", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["environment"]["backend"] == "torch"
    assert [row["inputs"] for row in found["artefacts"]] == [[[2, 3, 32, 32]]] * 2


@pytest.mark.usefixtures("folder")
def test_onnxruntime_times_them():
    result = run("saved", "faster.onnx", "--backend", "onnxruntime", "--rounds", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["environment"]["backend"] == "onnxruntime"
    assert all(row["ms"] >= row["least_ms"] > 0 and row["n"] in (9, 18, 27) for row in found["artefacts"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; give a folder that --out or result.save wrote, an .onnx file"),
        (["own.py"], "own.py has an unknown format; give a folder"),
        (["empty"], "empty holds no model.onnx; give a folder"),
        (["saved", "wide.onnx"], "saved takes 1x3x32x32, but wide.onnx takes 1x3x40x40, so they cannot"),
        (["cut.onnx"], "cut.onnx is truncated or cannot be used: cut.onnx is no ONNX file"),
        (["scalar.onnx"], "scalar.onnx has no input, or an input without a batch; give a network that takes"),
        (["nothing.onnx"], "nothing.onnx is truncated or cannot be used: the model is no valid ONNX"),
        (["saved", "other/saved"], "saved and other/saved both have the name 'saved'; rename one, for example other="),
        (["a=saved", "a=tiny.onnx"], "saved and tiny.onnx both have the name 'a'; rename one"),
        (["saved", "--baseline", "first"], "baseline (='first') must be one of saved"),
        (["saved", "--rounds", "2"], "rounds (=2) must be at least 3"),
        (["any.onnx"], "any.onnx takes batches of any size; give the size to time with --batch"),
        (["tiny.onnx", "--batch", "2"], "tiny.onnx takes only batches of 1, not --batch 2; leave --batch"),
        (["timm:mobilnetv2_050"], "model timm:mobilnetv2_050 is unknown to timm"),
        (["saved", "--backend", "abacus"], "backend 'abacus' is unknown; choose one of"),
        (["saved", "--backend", "own_machine:deaf"], "cannot time saved: no kernel takes this."),
        (["tiny.onnx", "--backend", "torch"], "tiny.onnx holds no PyTorch module, which the backend needs"),
        (["m.engine"], "m.engine.json, which describes the engine, cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_compared_is_answered_in_a_sentence(folder, arguments, sentence):
    (folder / "own.py").touch()
    (folder / "empty").mkdir()
    (folder / "other" / "saved").mkdir(parents=True)
    (folder / "cut.onnx").write_bytes((folder / "tiny.onnx").read_bytes()[:-100])
    (folder / "nothing.onnx").touch()
    (folder / "scalar.onnx").write_bytes(relu_of_a_scalar())
    (folder / "m.engine").write_bytes(b"engine")
    backend = () if "--backend" in arguments else OWN
    result = run(*arguments, *backend, "--json")
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {sentence}"), errors
    assert result.stdout == ""
    if own_machine.made:
        assert own_machine.made[-1].live == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_gpu_or_package_is_said_before_anything_is_read(backend, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("depthcomp.commands.bench.read_entry", None)
    monkeypatch.setitem(sys.modules, backend, None)
    assert f"error: {backend.replace('_', '-')} needs the package" in run("saved", "--backend", backend).stderr
    monkeypatch.setattr(tensorrt_backend, "load_library", lambda flavour: None)
    assert "error: torch sees no NVIDIA GPU; install" in run("saved", "--backend", backend).stderr


SIDECAR = {
    "spec": {"flavour": "tensorrt_rtx", "precision": "fp16"},
    "inputs": {"input": ["batch", 3, 32, 32]},
    "size_bytes": 6,
    "command": "tensorrt_rtx --onnx=m.engine.onnx --skipInference",
}


@pytest.fixture
def engine(folder):
    """A function that writes an engine and what stands beside it."""

    def write(**changes):
        path = folder / "m.engine"
        path.write_bytes(b"engine")
        path.with_name("m.engine.json").write_text(json.dumps({**SIDECAR, **changes}))
        return path

    return write


class Gpu:
    """Stands in for the runner of the GPU."""

    def __init__(self, trt, data, batch=None):
        self.ms = 0.5 if data == b"engine" else 1.0
        Gpu.loaded = [*getattr(Gpu, "loaded", []), (data[:6], batch)]

    def time_ms(self, inner):
        return inner * self.ms

    def close(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as a test can make one."""
    here = Environment.here(backend="tensorrt_rtx", backend_version="1.7", device="GPU (SM89)", threads=1)
    monkeypatch.setattr(TensorRtBackend, "environment", lambda self: replace(here, backend=self.name))
    monkeypatch.setattr(tensorrt_backend, "cuda", lambda: None)
    monkeypatch.setattr(tensorrt_backend, "load_library", lambda flavour: None)
    monkeypatch.setattr(tensorrt_backend, "TensorRtRunner", Gpu)
    monkeypatch.setattr(TensorRtBackend, "build", lambda self, model: Gpu(None, model))
    monkeypatch.setattr(TensorRtBackend, "device_state", lambda self: None)


@pytest.mark.usefixtures("gpu")
def test_an_engine_runs_beside_networks_on_its_backend_and_the_equivalent_lines_are_told(engine):
    engine()
    found = measured("m.engine", "any.onnx", "--batch", "4", backend=("--backend", "tensorrt_rtx"))
    built, onnx_row = found["artefacts"]
    assert (built["kind"], built["precision"], built["ms"]) == ("tensorrt_rtx engine", "fp16", 0.5)
    assert built["inputs"] == onnx_row["inputs"] == [[4, 3, 32, 32]]
    assert (b"engine", 4) in Gpu.loaded
    line = "tensorrt_rtx --onnx=m.engine.onnx --shapes=input:4x3x32x32"
    assert built["command"] == line
    begun = "tensorrt_rtx --onnx=any.onnx --saveEngine=any.onnx.engine --maxAuxStreams=0"
    assert onnx_row["command"] == f"{begun} --shapes=input:4x3x32x32"
    text = run("m.engine", "--batch", "4", "--backend", "tensorrt_rtx").stdout
    assert f"m.engine with NVIDIA's tool: {line}" in text


@pytest.mark.usefixtures("gpu", "folder")
@pytest.mark.parametrize(("options", "file"), [((), "saved/model.onnx"), (("--batch", "2"), "model.onnx")])
def test_the_line_names_the_file_of_a_result_where_that_has_the_batch(options, file):
    (saved,) = measured("saved", *options, backend=("--backend", "tensorrt_rtx"))["artefacts"]
    assert saved["command"] == f"tensorrt_rtx --onnx={file} --saveEngine={file}.engine --maxAuxStreams=0"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"size_bytes": 7}, ["--batch", "1"], "m.engine has 6 bytes, but m.engine.json says 7: it is truncated"),
        ({"spec": None}, [], "m.engine.json does not describe an engine"),
        ({"inputs": {}}, [], "m.engine.json does not describe an engine"),
        ({}, [], "m.engine takes batches of any size"),
        ({"inputs": {"x": [2, 3, 32, 32]}}, ["--batch", "1"], "m.engine takes only batches of 2"),
        (
            {},
            ["--batch", "1", "--backend", "tensorrt"],
            "m.engine is an engine for tensorrt_rtx, which the backend",
        ),
        (
            {},
            ["--batch", "1", "--backend", "onnxruntime"],
            "m.engine is an engine for tensorrt_rtx, which the backend",
        ),
    ],
)
def test_an_engine_that_cannot_run_is_answered_in_a_sentence(engine, changes, arguments, sentence):
    engine(**changes)
    backend = () if "--backend" in arguments else ("--backend", "tensorrt_rtx")
    result = run("m.engine", *arguments, *backend)
    assert result.exit_code == 2, result.output
    assert re.search(f"^error: {re.escape(sentence)}", result.stderr, re.MULTILINE), result.stderr


@pytest.mark.usefixtures("folder")
def test_a_result_that_says_little_is_compared_all_the_same(folder):
    (folder / "saved" / "result.json").write_text('{"original": 3}')
    assert measured("saved")["artefacts"][0]["when_compressed"] is None
    (folder / "saved" / "result.json").unlink()
    assert measured("saved")["artefacts"][0]["when_compressed"] is None
