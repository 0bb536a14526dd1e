"""A result that an earlier revision saved, with plan and importance of version 1: it loads, exports and fine-tunes."""

import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import depthcomp
from depthcomp import FinetuneConfig
from depthcomp.commands.main import app
from depthcomp.results.loading import load_result
from fx_passes import merge

pytestmark = pytest.mark.whole

SAVED = Path(__file__).parent / "fixtures" / "compressed_by_version_1"
PLAN = [
    ("_5", "_6_conv_3", "fit", (1, 1)),
    ("add", "_7_relu_1", "drop", None),
    ("_7_relu_1", "_11", "merge", (3, 3)),
]
OUTPUTS_THEN = [-0.146798, -1.784322, -1.554094, 0.584985]  # of the earlier revision, for the first of the images


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SAVED, tmp_path / "saved")


def images(count=24):
    return torch.randn(count, 3, 19, 23, generator=torch.Generator().manual_seed(1))


def labelled_images():
    """What the command line trains on: images of one class, which the network takes for another."""
    return DataLoader(TensorDataset(images(), torch.zeros(24, dtype=torch.long)), 8)


def told(choices):
    return [(choice.entry, choice.exit, choice.kind, getattr(choice, "kernel", None)) for choice in choices]


@torch.no_grad()
def outputs(network):
    return network.eval()(images())


def require_whole(result, folder):
    """The network in a folder must be what its plan makes of its trainable form."""
    torch.testing.assert_close(outputs(merge(result.trainable, result.plan)), outputs(depthcomp.load(folder)))


def test_the_network_computes_what_it_computed_then(folder):
    torch.testing.assert_close(outputs(depthcomp.load(folder))[0], torch.tensor(OUTPUTS_THEN))


def test_plan_result_and_importance_tell_the_choices(folder):
    result = load_result(folder)
    assert told(result.plan) == PLAN
    assert told(record.choice for record in result.spans) == PLAN
    assert told(result.free_merges) == [("_2", "_5", "merge", (1, 1))]
    assert set(result.plan) < set(result.importance.losses)
    assert {choice for point in result.frontier for choice in point.plan} == set(result.importance.losses)


def test_the_trainable_form_merges_to_the_network(folder):
    require_whole(load_result(folder), folder)


def test_it_exports(folder):
    exported = CliRunner().invoke(app, ["export", str(folder), "--to", "onnx", "--batch", "24"])
    assert exported.exit_code == 0, exported.output
    session = onnxruntime.InferenceSession(folder / "model.fp32.batch24.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), outputs(depthcomp.load(folder)), atol=1e-4, rtol=1e-4)


def test_it_fine_tunes(folder):
    before = outputs(depthcomp.load(folder))
    config = FinetuneConfig(epochs=3, learning_rate=0.05, distillation=0.0, features=0.1)
    (folder / "config.json").write_text(config.to_json())
    options = ["--data", f"{__name__}:labelled_images", "--config", str(folder / "config.json")]
    tuned = CliRunner().invoke(app, ["finetune", str(folder), *options])
    assert tuned.exit_code == 0, tuned.output
    result = load_result(folder)
    assert result.finetuned.best != "untrained"
    assert told(result.plan) == PLAN
    assert not torch.allclose(outputs(depthcomp.load(folder)), before)
    require_whole(result, folder)
