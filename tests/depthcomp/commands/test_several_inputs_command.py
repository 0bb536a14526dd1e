"""Networks of several inputs on the command line: data from functions and from files of arrays."""

import json
import warnings

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import several_inputs
import torch
from several_inputs import COUNT, drawn, images, mask
from typer.testing import CliRunner

import depthcomp
from depthcomp.commands.main import app
from depthcomp.data.saved_arrays import read_arrays
from depthcomp.errors import DataError

pytestmark = pytest.mark.whole


@pytest.fixture
def run(arithmetic_backend, monkeypatch):
    machine = arithmetic_backend()
    monkeypatch.setattr("latency_tables.create_backend", lambda name, threads: machine)

    def run(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CliRunner().invoke(app, [*map(str, arguments)])

    return run


def compress(run, factory, data, out, *options):
    found = run(
        "compress", f"several_inputs:{factory}", "--budget", "80%", "--data", data, "--out", out, "--json", *options
    )
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


SAVERS = {
    ".npz": lambda path, arrays: np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()}),
    ".pt": lambda path, arrays: torch.save(arrays, path),
    ".safetensors": lambda path, arrays: safetensors.torch.save_file(arrays, path),
}


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_file_of_arrays_has_rows_of_inputs_and_labels(tmp_path, suffix):
    path = tmp_path / f"arrays{suffix}"
    SAVERS[suffix](path, {"vector": drawn(5, seed=2), "image": images(), "label": torch.arange(COUNT) % 3})
    rows = read_arrays(path)
    assert len(rows) == COUNT
    assert torch.equal(rows[3]["image"], images()[3])
    assert rows[4]["label"] == 1


def test_inputs_are_named_where_the_forward_has_defaults(run, tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, pixel_values=images().numpy(), mask=mask().float().numpy())
    found = run("compress", "several_inputs:by_keyword", "--budget", "80%", "--data", path)
    assert found.exit_code == 2
    assert "holds mask, which the network's forward takes but does not need" in " ".join(found.stderr.split())
    compress(run, "by_keyword", path, tmp_path / "out", "--inputs", "pixel_values,mask", "--kinds", "narrow")
    assert depthcomp.load(tmp_path / "out")(images(), mask().float())["logits"].shape == (COUNT, 3)


def test_pairs_of_a_function_are_compressed_tuned_and_exported(run, tmp_path):
    content = compress(run, "siamese", "several_inputs:pairs", tmp_path, "--kinds", "narrow")
    assert content["measured"]["ms"] < content["original"]["ms"]
    path = tmp_path / "pairs.npz"
    np.savez(path, left=images().numpy(), right=images(1).numpy())
    found = run("finetune", tmp_path, "--data", path, "--epochs", 1, "--batch-size", 8, "--json")
    assert found.exit_code == 0, found.output
    found = run("export", tmp_path, "--to", "onnx", "--batch", "1,2,4", "--out", tmp_path / "any.onnx")
    assert found.exit_code == 0, found.output
    session = onnxruntime.InferenceSession(tmp_path / "any.onnx")
    (scores,) = session.run(None, {"left": images().numpy(), "right": images(1).numpy()})
    assert torch.allclose(torch.from_numpy(scores), depthcomp.load(tmp_path)(images(), images(1)), atol=1e-5)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [("photos", "holds images alone, and the model takes several inputs"), ("missing.npz", "does not exist")],
)
def test_data_that_do_not_fit_are_refused(run, data, sentence):
    found = run("compress", "several_inputs:siamese", "--budget", "80%", "--data", data)
    assert found.exit_code == 2
    assert sentence in " ".join(found.stderr.split())


def test_a_factory_tells_the_shapes_where_there_are_no_data(run, tmp_path, monkeypatch):
    arguments = ("tables", "plan", "several_inputs:shaped", "--out", tmp_path / "work.json")
    monkeypatch.setattr(several_inputs, "shaped", several_inputs.with_vector, raising=False)
    assert "let the factory set model.example_inputs" in " ".join(run(*arguments).stderr.split())

    def shaped():
        model = several_inputs.with_vector()
        model.example_inputs = {"vector": drawn(5)[:1], "image": images()[:1]}
        return model

    monkeypatch.setattr(several_inputs, "shaped", shaped)
    assert run(*arguments).exit_code == 0


def test_files_without_rows_of_arrays_are_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, image=np.zeros((3, 2)), label=np.zeros(2))
    with pytest.raises(DataError, match=r"different numbers of rows, or none \(image 3, label 2\)"):
        read_arrays(path)
    np.savez(path, image=np.array([object()]))
    with pytest.raises(DataError, match=r"arrays\.npz cannot be read .*; save arrays by name"):
        read_arrays(path)
    other = tmp_path / "list.pt"
    torch.save([1], other)
    with pytest.raises(DataError, match=r"holds something other than arrays by name"):
        read_arrays(other)
