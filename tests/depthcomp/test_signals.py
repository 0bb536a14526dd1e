"""Networks of signals, from end to end: one-dimensional before, in between and after."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from signal_networks import NETWORKS, audio, series, short, signals
from torch import nn
from typer.testing import CliRunner

import depthcomp
from depthcomp import compress_depth
from depthcomp.commands.data_specs import calibration_data
from depthcomp.commands.main import app
from depthcomp.data.batches import labelled_images, synthetic_batches
from depthcomp.data.inputs import Inputs
from depthcomp.data.pictures import readable
from depthcomp.errors import CaptureError, DataError
from depthcomp.training.config import FinetuneConfig
from latency_tables import LatencyTable, OperatorSignature

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:.*without data:UserWarning")]


def onnx_output(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape == [1, *x.shape[1:]]
    return torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0])


def require_one_dimension(network, folder):
    """Check that a network, its ONNX file and its table hold operators of signals alone."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    assert layers
    assert {type(layer) for layer in layers} == {nn.Conv1d}
    nodes = onnx.load(folder / "model.onnx").graph.node
    kernels = [a.ints for node in nodes if node.op_type == "Conv" for a in node.attribute if a.name == "kernel_shape"]
    assert kernels
    assert all(len(kernel) == 1 for kernel in kernels)
    measured = map(OperatorSignature.parse, LatencyTable.load(folder / "latency_table.json").entries)
    assert all(signature.signals for signature in measured if signature.op != "linear")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_signals_meets_its_budget_and_stays_one_dimensional(name, arithmetic_backend, tmp_path):
    net = NETWORKS[name]()
    x = signals(net.pretrained_cfg["input_size"])
    result = compress_depth(net, "80%", data=x, backend=arithmetic_backend(), output_dir=tmp_path)
    assert result.measured_ms <= 0.8 * result.original_ms
    require_one_dimension(result.model, tmp_path)
    with torch.no_grad():
        wanted, found = result.model(x[:1]), depthcomp.load(tmp_path)(x[:1])
    assert torch.equal(found, wanted)
    torch.testing.assert_close(onnx_output(tmp_path / "model.onnx", x[:1]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    ["merge", "fit", pytest.param("drop", marks=pytest.mark.slow), pytest.param("narrow", marks=pytest.mark.slow)],
)
def test_each_kind_alone_rewrites_signals(kind, arithmetic_backend):
    net, x = (series() if kind == "drop" else short()), signals((9, 64) if kind == "drop" else (2, 400))
    result = compress_depth(net, "95%", data=x, kinds=[kind], backend=arithmetic_backend())
    assert {choice.kind for choice in result.plan} == {kind}
    assert result.model(x).shape == net(x).shape


def test_a_compressed_network_of_signals_is_tuned(arithmetic_backend, tmp_path):
    net, x = short(), signals((2, 400))
    labels = net(x).argmax(1)
    result = compress_depth(
        net, "75%", data=[(x[:16], labels[:16]), (x[16:], labels[16:])], backend=arithmetic_backend(),
        kinds=["fit"], finetune=FinetuneConfig(epochs=1, batch_size=8), output_dir=tmp_path,
    )  # fmt: skip
    require_one_dimension(result.model, tmp_path)
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in result.trainable.modules())
    torch.testing.assert_close(result.model(x), result.trainable.eval()(x), rtol=1e-3, atol=1e-3)


def test_without_data_signals_are_made_up(arithmetic_backend):
    with pytest.warns(UserWarning, match="without data"):
        result = compress_depth(short(), "75%", backend=arithmetic_backend())
    assert result.example_inputs[0].shape == (1, 2, 400)
    assert result.measured_ms <= 0.75 * result.original_ms


def test_made_up_signals_are_as_loud_at_each_channel_and_smooth():
    x = Inputs.joined(synthetic_batches(torch.zeros(1, 3, 501), 8, seed=0)).held
    torch.testing.assert_close(x.std(-1), torch.ones(8, 3))
    assert (x.diff(dim=-1).std(-1) < 0.8).all()
    vectors = Inputs.joined(synthetic_batches(torch.zeros(1, 300), 64, seed=0)).held
    assert vectors.std() == pytest.approx(1, abs=0.05)


def test_nothing_tells_how_long_signals_are():
    net = audio()
    del net.pretrained_cfg
    with pytest.raises(CaptureError, match=r"takes signals \(n, c, length\), whose size nothing tells; pass example_"):
        compress_depth(net, "80%")


def test_an_example_of_another_kind_is_refused():
    with pytest.raises(CaptureError, match=r"has shape \(1, 1, 1, 400\), but must be one batch of signals \(n, c"):
        compress_depth(audio(), "80%", example_inputs=torch.zeros(1, 1, 1, 400))


def test_data_of_another_kind_are_refused():
    with pytest.raises(DataError, match=r"has shape \(1, 1, 1, 400\), but must be a batch of signals \(n, c, length\)"):
        compress_depth(audio(), "80%", data=[torch.zeros(1, 1, 1, 400)])


def test_arrays_of_signals_are_read_as_they_are():
    arrays = [signals((1, 400), 4, seed).double().numpy() for seed in range(3)]
    for given in (arrays, arrays[0], {"x": arrays[0]}):
        data, sentence = readable([given] if isinstance(given, dict) else given, audio(), None)
        found = labelled_images(data, torch.zeros(1, 1, 400)).images.held
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[:4].double(), torch.from_numpy(arrays[0]), rtol=1e-6, atol=1e-6)
        assert not sentence


def test_files_of_arrays_hold_inputs_and_labels(tmp_path):
    x, labels = signals((1, 400)), torch.arange(24) % 5
    np.save(tmp_path / "x.npy", x.numpy())
    torch.save(x, tmp_path / "x.pt")
    torch.save((x, labels), tmp_path / "labelled.pt")
    np.savez(tmp_path / "named.npz", x=x.numpy(), label=labels.numpy())
    save_file({"x": x, "label": labels}, tmp_path / "named.safetensors")
    labelled = dict.fromkeys(("labelled.pt", "named.npz", "named.safetensors"), labels)
    for name, expected in {"x.npy": None, "x.pt": None, **labelled}.items():
        by_name, _ = readable(tmp_path / name, audio(), None)
        for data in (by_name, calibration_data(str(tmp_path / name), audio(), x[:1])):
            found = labelled_images(data, x[:1])
            assert len(found.images) == 24
            assert (
                found.labels is None if expected is None else sorted(found.labels.tolist()) == sorted(expected.tolist())
            )


@pytest.fixture
def here(tmp_path, monkeypatch, arithmetic_backend):
    """A folder from where the networks and the machine can be named."""
    monkeypatch.chdir(tmp_path)

    def on_the_machine(*arguments, backend, **options):
        return compress_depth(*arguments, backend=arithmetic_backend(), **options)

    monkeypatch.setattr("depthcomp.compress_depth", on_the_machine)
    return tmp_path


def on_the_shell(*arguments):
    return CliRunner().invoke(app, ["compress", "signal_networks:short", "--budget", "80%", *arguments, "--json"])


def test_the_shell_takes_signals_from_a_file(here):
    np.save("waves.npy", signals((2, 400)).numpy())
    done = on_the_shell("--data", "waves.npy", "--out", "out")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["speedup"] >= 1 / 0.8
    require_one_dimension(depthcomp.load("out"), here / "out")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("objects.npy", "cannot be read"),
        ("nested.pt", "holds something other than an array"),
        ("none.npy", "none.npy does not exist"),
    ],
)
def test_the_shell_says_what_is_wrong_with_a_file(name, sentence):
    np.save("objects.npy", np.array([{}], dtype=object))
    torch.save({"x": {"y": torch.zeros(2)}}, "nested.pt")
    done = on_the_shell("--data", name)
    assert done.exit_code == 2, done.output
    assert sentence in " ".join(done.stderr.split())
