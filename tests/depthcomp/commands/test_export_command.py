"""`depthcomp export`, as far as it needs no TensorRT."""

import json

import onnx
import pytest
from PIL import Image
from tiny_network import EXAMPLE, tiny_net
from typer.testing import CliRunner

from depthcomp.commands.main import app
from depthcomp.results.stored_network import save_network
from fx_passes import capture

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def network():
    return capture(tiny_net(), EXAMPLE)


@pytest.fixture
def folder(network, tmp_path):
    save_network(network, tmp_path, (EXAMPLE,))
    content = {"example_inputs": [{"shape": [1, 3, 32, 32], "dtype": "float32"}]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    (tmp_path / "model.onnx").write_bytes(b"as it was saved")
    return tmp_path


def run(folder, *options):
    return CliRunner().invoke(app, ["export", str(folder), *options])


@pytest.mark.parametrize(
    ("options", "name", "batch"),
    [
        ((), "model.fp32.onnx", 1),
        (("--precision", "fp16", "--batch", "4"), "model.fp16.batch4.onnx", 4),
        (("--batch", "1,8,32"), "model.fp32.batch1-8-32.onnx", "batch"),
    ],
)
def test_onnx_is_written_beside_the_saved_one(folder, options, name, batch):
    result = run(folder, "--to", "onnx", *options)
    assert result.stdout == f"wrote {folder / name}\n", result.output
    size = onnx.load(folder / name).graph.input[0].type.tensor_type.shape.dim[0]
    assert (size.dim_param or size.dim_value) == batch
    assert (folder / "model.onnx").read_bytes() == b"as it was saved"


def test_int8_takes_a_folder_of_images(folder, tmp_path):
    (tmp_path / "images").mkdir()
    for shade in (10, 100, 200):
        Image.new("RGB", (40, 40), (shade, 255 - shade, shade)).save(tmp_path / "images" / f"{shade}.png")
    out = tmp_path / "m.onnx"
    result = run(folder, "--to", "onnx", "--precision", "int8", "--data", str(tmp_path / "images"), "--out", str(out))
    assert result.stdout == f"wrote {out}\n", result.output
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(out).graph.node}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--to torch", "--to torch is unknown; choose onnx, tensorrt, tensorrt-rtx"),
        ("--to onnx --precision bf16", "--precision bf16 is unknown; choose fp32, fp16, int8"),
        ("--to onnx --sm 89", "--sm 89 goes with --to tensorrt-rtx only"),
        ("--to tensorrt --sm 89", "--sm 89 goes with --to tensorrt-rtx only"),
        ("--to tensorrt-rtx --sm 8.9", "--sm 8.9 must be whole numbers with commas between them, for example 86,89"),
        ("--to tensorrt-rtx --timing-cache c", "--timing-cache c goes with --to tensorrt only; leave it out"),
        ("--to onnx --batch 8,1,32", "--batch 8,1,32 must be a size, or smallest,typical,largest in order"),
        ("--to onnx --batch 0", "--batch 0 must be a size"),
        ("--to onnx --batch 1,2", "--batch 1,2 must be a size"),
        ("--to onnx --data .", "--data . goes with --precision int8 only"),
        ("--to onnx --precision int8", "int8 needs images"),
        ("--to tensorrt-rtx --precision int8 --data nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_answered_in_a_sentence(folder, options, sentence):
    result = run(folder, *options.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("absent/m.onnx", "its folder does not exist; create that first"), (".", "it is a folder; add a file name to it")],
)
def test_a_file_that_cannot_be_written_is_said_before_exporting(folder, tmp_path, monkeypatch, out, sentence):
    monkeypatch.setattr("depthcomp.commands.export.onnx_in_precision", None)
    result = run(folder, "--to", "onnx", "--out", str(tmp_path / out))
    assert result.exit_code == 2
    assert result.stderr == f"error: cannot write the exported network {tmp_path / out}: {sentence}.\n"


def test_a_folder_without_a_network_or_without_shapes_is_named(folder, tmp_path):
    assert "does not exist" in run(tmp_path / "nothing", "--to", "onnx").stderr
    (folder / "result.json").write_text("{}")
    result = run(folder, "--to", "onnx")
    assert result.exit_code == 2
    assert "result.json does not hold the shapes of the inputs" in result.stderr


def test_a_type_that_is_none_is_no_type(folder):
    (folder / "result.json").write_text('{"example_inputs": [{"shape": [1, 3, 32, 32], "dtype": "save"}]}')
    assert "save is no tensor type" in run(folder, "--to", "onnx").stderr
