"""Operators that the algebra does not know: they stay, a sentence says so, and the rest is compressed."""

import itertools
import json

import onnx
import onnxruntime
import pytest
import torch
from signal_networks import signals
from torch import nn
from typer.testing import CliRunner

import depthcomp
from depthcomp import compress_depth
from depthcomp.commands.main import app
from depthcomp.errors import BudgetInfeasibleError

pytestmark = pytest.mark.whole

UNKNOWN_MS = 0.2  # of each operator that no signature prices, on the machine of these tests


def chain(conv, count, c_in, c_out):
    """Return convolutions in a row with activations; merging pays."""
    widths = [c_in, *[8] * (count - 1), c_out]
    return [layer for a, b in itertools.pairwise(widths) for layer in (conv(a, b, 3, padding=1), nn.ReLU())]


def upsampling(conv, transposed):
    torch.manual_seed(0)
    return nn.Sequential(*chain(conv, 2, 3, 8), transposed(8, 8, 2, 2), nn.ReLU(), *chain(conv, 2, 8, 4)[:-1]).eval()


def volumes(first):
    """Return a network that reads volumes of depth 4 or 8, and works on their slices as channels."""
    torch.manual_seed(0)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(1, 2), *chain(nn.Conv2d, 3, 16, 4)[:-1]).eval()


def transposed_2d():
    return upsampling(nn.Conv2d, nn.ConvTranspose2d)


def transposed_1d():
    return upsampling(nn.Conv1d, nn.ConvTranspose1d)


def plain_3d():
    return volumes(nn.Conv3d(1, 4, 3, padding=1))


def transposed_3d():
    return volumes(nn.ConvTranspose3d(1, 2, (2, 1, 1), (2, 1, 1)))


VOLUMES = "is a convolution of volumes, and only plain convolutions of images or signals can be merged"
TRANSPOSED = "is a transposed convolution, and only plain convolutions of images or signals can be merged"
KINDS = {
    "transposed_1d": (transposed_1d, (3, 48), f"4: ConvTranspose1d {TRANSPOSED}"),
    "transposed_2d": (transposed_2d, (3, 12, 12), f"4: ConvTranspose2d {TRANSPOSED}"),
    "plain_3d": (plain_3d, (1, 4, 12, 12), f"0: Conv3d {VOLUMES}"),
    "transposed_3d": (transposed_3d, (1, 4, 12, 12), f"0: ConvTranspose3d {TRANSPOSED}"),
}


def unknown_ms(model, ms):
    """Add what operators take that no signature prices."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    ranks = {weight.name: len(weight.dims) for weight in graph.initializer}
    unknown = sum(node.op_type in ("ConvTranspose", "Resize", "Softmax") for node in graph.node)
    of_volumes = sum(node.op_type == "Conv" and ranks[node.input[1]] == 5 for node in graph.node)
    return ms + UNKNOWN_MS * (unknown + of_volumes)


@pytest.fixture
def machine(arithmetic_backend):
    return lambda: arithmetic_backend(hidden=unknown_ms)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_with_an_operator_that_is_not_known_is_compressed_elsewhere(kind, machine, tmp_path):
    build, shape, sentence = KINDS[kind]
    net, x = build(), signals(shape)
    result = compress_depth(net, "90%", data=x, backend=machine(), output_dir=tmp_path)
    assert result.measured_ms <= 0.9 * result.original_ms
    assert result.predicted_ms == pytest.approx(result.measured_ms, rel=0.05)
    assert sentence in [refusal.reason for refusal in result.refusals]
    kept = type(next(layer for layer in net.modules() if type(layer).__name__ in sentence))
    assert any(isinstance(layer, kept) for layer in result.model.modules())
    with torch.no_grad():
        wanted = result.model(x[:1])
        assert torch.equal(depthcomp.load(tmp_path)(x[:1]), wanted)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    found = torch.from_numpy(session.run(None, {entry.name: x[:1].numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["transposed_2d", "plain_3d", *(pytest.param(f"transposed_{n}d", marks=pytest.mark.slow) for n in (1, 3))]
)
def test_so_it_is_on_the_shell(kind, machine, tmp_path, monkeypatch):
    _, shape, sentence = KINDS[kind]
    monkeypatch.chdir(tmp_path)

    def on_the_machine(*given, backend, **options):
        return compress_depth(*given, backend=machine(), **options)

    monkeypatch.setattr("depthcomp.compress_depth", on_the_machine)
    torch.save(signals(shape), "data.pt")
    nets = f"import test_other_operators\n\ndef net():\n    model = test_other_operators.{kind}()\n"
    (tmp_path / f"nets_{kind}.py").write_text(
        nets + f"    model.pretrained_cfg = {{'input_size': {shape}}}\n    return model\n"
    )
    options = "--budget 85% --data data.pt --out out --json"
    done = CliRunner().invoke(app, ["compress", f"nets_{kind}:net", *options.split()])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["speedup"] >= 1 / 0.85
    assert sentence.partition(": ")[2] in (tmp_path / "out" / "report.html").read_text()


class Generator(nn.Module):
    """A generator of images from vectors: all convolutions are transposed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project, layers = nn.Linear(12, 16 * 9), [nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z):
        return self.layers(self.project(z.flatten(1)).view(-1, 16, 3, 3))


class Decoder(nn.Module):
    """A decoder that resizes between convolutions; resizing takes most of the time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        widths = ((4, 8), (8, 8), (8, 3))
        self.first, self.second, self.last = (nn.Sequential(*chain(nn.Conv2d, 2, *pair)) for pair in widths)

    def forward(self, x):
        for part in (self.first, self.second):
            x = nn.functional.interpolate(part(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(x)


class Hybrid(nn.Module):
    """Convolutions that may all be dropped, then attention, which no signature prices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Sequential(*chain(nn.Conv2d, 4, 8, 8)), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        return (tokens + self.attention(normed, normed, normed, need_weights=False)[0]).mean(1)


@pytest.mark.parametrize("shape", [(12,), (12, 1, 1)])
def test_a_generator_of_transposed_convolutions_alone_cannot_be_made_faster(shape, machine):
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BudgetInfeasibleError, match="no plan meets budget 80%"):
        compress_depth(Generator().eval(), "80%", example_inputs=x[:1], data=x, backend=machine())


@pytest.mark.parametrize(("build", "shape", "budget"), [(Decoder, (4, 12, 12), "85%"), (Hybrid, (8, 24, 24), "60%")])
def test_predictions_hold_where_much_of_the_time_is_in_operators_without_a_price(build, shape, budget, machine):
    net, x = build().eval(), signals(shape, 16)
    result = compress_depth(net, budget, data=x, backend=machine())
    assert result.measured_ms <= float(budget[:-1]) / 100 * result.original_ms
    assert result.predicted_ms == pytest.approx(result.measured_ms, rel=0.05)
    assert result.model(x[:2]).shape == net(x[:2]).shape


def test_a_budget_below_what_has_no_price_is_refused(machine):
    with pytest.raises(BudgetInfeasibleError, match="no plan meets budget 20%") as caught:
        compress_depth(Hybrid().eval(), "20%", data=signals((8, 24, 24), 16), backend=machine())
    assert caught.value.best_ms > UNKNOWN_MS
