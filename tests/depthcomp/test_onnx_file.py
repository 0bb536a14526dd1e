"""Networks in ONNX files: read, compressed, and exported under the names of the file."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

import depthcomp
from depthcomp import compress_depth
from depthcomp.commands.main import app
from depthcomp.commands.models import load_model
from depthcomp.errors import CaptureError, MissingPackageError
from depthcomp.export.onnx_model import export_onnx
from depthcomp.sources.onnx_file import read_onnx
from fx_passes import capture

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RNG = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.normal(0, 0.4, shape).astype(np.float32), name)


def written(folder, *, batch="N", size=(11, 9), opset=13, pad="SAME_UPPER"):
    """Write a network as other frameworks do: names with slashes, automatic padding, weights in constants."""
    nodes = [
        helper.make_node("Constant", [], ["net/w0"], value=weight("v", 6, 3, 3, 3)),
        helper.make_node("Conv", ["image:0", "net/w0", "b0"], ["c0"], name="net/conv@0", auto_pad=pad, strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="net/conv@1", auto_pad=pad, kernel_shape=[3, 3]),
        helper.make_node("Identity", ["c1"], ["i1"]),
        helper.make_node("Sigmoid", ["i1"], ["g1"]),
        helper.make_node("Mul", ["i1", "g1"], ["m1"]),
        helper.make_node("Conv", ["m1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r0"], ["a2"]),
        helper.make_node("MaxPool", ["a2"], ["m2"], kernel_shape=[2, 3], auto_pad=pad),
        helper.make_node("Relu", ["m2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"]),
        helper.make_node("GlobalAveragePool", ["c3"], ["p3"]),
        helper.make_node("Reshape", ["p3", "shape"], ["scores:0"]),
    ]
    weights = [weight("b0", 6), weight("w1", 6, 6, 3, 3), weight("w2", 6, 6, 3, 3), weight("w3", 5, 6, 1, 1)]
    weights.append(numpy_helper.from_array(np.array([-1, 5]), "shape"))
    image = helper.make_tensor_value_info("image:0", TensorProto.FLOAT, [batch, 3, *size])
    scores = helper.make_tensor_value_info("scores:0", TensorProto.FLOAT, [batch, 5])
    graph = helper.make_graph(nodes, "net", [image], [scores], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


def run(path, images):
    session = onnxruntime.InferenceSession(path)
    return session.run(["scores:0"], {"image:0": images.numpy()})[0]


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("opset", [11, 17])
def test_the_network_computes_what_the_file_does(tmp_path, pad, opset):
    path = written(tmp_path, pad=pad, opset=opset)
    network, example = read_onnx(path)
    assert example.shape == (1, 3, 11, 9)
    images = torch.randn(4, 3, 11, 9)
    with torch.no_grad():
        assert np.allclose(network(images).numpy(), run(path, images), atol=1e-5)
    assert sum(parameter.numel() for parameter in network.parameters()) > 800
    given = torch.zeros(2, 3, 11, 9)
    assert read_onnx(path, (given,))[1] is given
    assert load_model(str(path))[1].held.shape == (1, 3, 11, 9)


def test_a_compressed_file_keeps_its_names_and_its_free_batch(tmp_path, arithmetic_backend):
    path = written(tmp_path)
    data = torch.randn(24, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    result = compress_depth(path, "90%", data=data.split(8), backend=arithmetic_backend(), output_dir=tmp_path / "out")
    assert result.measured_ms <= 0.9 * result.original_ms
    with torch.no_grad():
        wanted = result.model(data[:5]).numpy()
    for exported in (tmp_path / "out" / "model.onnx", result.export_onnx(tmp_path / "again.onnx")):
        assert np.allclose(run(exported, data[:5]), wanted, atol=1e-5)
    loaded = depthcomp.load(tmp_path / "out")
    assert torch.equal(loaded(data[:5]), result.model(data[:5]))
    assert loaded.onnx_names == {"inputs": ["image:0"], "outputs": ["scores:0"], "dynamic_batch": True}


def test_names_that_the_exporter_gave_to_other_tensors_are_free_again(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    network.onnx_names = {"inputs": ["relu"], "outputs": ["conv2d"], "dynamic_batch": True}
    gm = capture(network, torch.zeros(1, 3, 7, 7))
    model = onnx.load(export_onnx(gm, (torch.zeros(1, 3, 7, 7),), tmp_path / "named.onnx"))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["relu", "conv2d"]


def test_a_fixed_batch_stays_fixed(tmp_path):
    network, example = read_onnx(written(tmp_path, batch=2))
    assert (len(example), network.onnx_names["dynamic_batch"]) == (2, False)


def _refusal(path, **options):
    with pytest.raises(CaptureError) as caught:
        read_onnx(path, **options)
    return str(caught.value)


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path):
    assert "does not exist; check the path" in _refusal(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    assert "text.onnx cannot be read as ONNX" in _refusal(tmp_path / "text.onnx")
    path = written(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:900])
    assert "cut.onnx cannot be read as ONNX" in _refusal(tmp_path / "cut.onnx")
    assert "leaves the size of its input image:0 open; give example_inputs" in _refusal(
        written(tmp_path, size=("h", 9))
    )
    model = onnx.load(written(tmp_path))
    two = copy.deepcopy(model)
    two.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    onnx.save(two, tmp_path / "two.onnx")
    assert "holds [[0.0]] of type list where a tensor is needed" in _refusal(path, example_inputs=[[[0.0]]])
    assert "example_inputs holds 2 inputs, and" in _refusal(path, example_inputs=(torch.zeros(1, 3, 11, 9),) * 2)
    assert "two.onnx has 2 inputs (image:0, mask), and must have one" in _refusal(tmp_path / "two.onnx")
    model.graph.node.append(helper.make_node("DeformConv", ["r2", "w2", "r2"], ["unknown"]))
    model.graph.output.append(helper.make_tensor_value_info("unknown", TensorProto.FLOAT, [1]))
    model.opset_import[0].version = 19
    onnx.save(model, tmp_path / "new.onnx")
    assert "new.onnx (opset 19) cannot be converted to PyTorch" in _refusal(tmp_path / "new.onnx")


def test_weights_for_a_file_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    path = written(tmp_path)
    with pytest.raises(CaptureError, match=r"net\.onnx holds its weights; leave out --weights"):
        load_model(str(path), tmp_path / "w.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "onnx2torch", None)
    with pytest.raises(MissingPackageError, match=r'onnx2torch; run `pip install "depthcomp\[onnx\]"`'):
        read_onnx(path)


def test_the_shell_takes_files(tmp_path, monkeypatch):
    found = CliRunner().invoke(app, ["compress", str(tmp_path / "none.onnx"), "--budget", "80%"])
    assert (found.exit_code, "does not exist" in found.stderr.replace("\n", " ")) == (2, True)
