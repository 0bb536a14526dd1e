"""Networks of several inputs on the command line: data from functions and from files of arrays."""

import json
import warnings

import numpy as np
import onnxruntime
import pytest
import several_inputs
import torch
from several_inputs import COUNT, drawn, images, mask
from typer.testing import CliRunner

import depthcomp
from depthcomp.commands.main import app

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
