"""Networks of several inputs: two images through one trunk, an image with a vector, with a mask, and by keyword."""

import numpy as np
import onnxruntime
import pytest
import torch
from several_inputs import COUNT, by_keyword, drawn, images, mask, siamese, with_mask, with_vector
from torch.utils.data import DataLoader, TensorDataset

import depthcomp
from depthcomp import FinetuneConfig, compress_depth
from depthcomp.data.calibration import calibration_hash
from depthcomp.errors import CaptureError, DataError, DepthCompError
from depthcomp.export.onnx_model import to_onnx
from depthcomp.latency.timing import NetworkTimer
from depthcomp.preparation import prepare
from depthcomp.results.loading import load_result
from depthcomp.runs.shard import score_shard
from fx_passes import capture
from fx_passes.outputs import tensors_of
from latency_tables import create_backend

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:the network predicts the labels")]

CASES = {
    "siamese": (siamese, lambda: (images(), images(1)), ("left", "right")),
    "vector": (with_vector, lambda: (images(), drawn(5, seed=2)), ("image", "vector")),
    "mask": (with_mask, lambda: (images(), mask()), ("image", "mask")),
    "keyword": (by_keyword, lambda: (images(), mask().float()), ("pixel_values", "mask")),
}


@pytest.fixture
def compressed(arithmetic_backend):
    def run(model, budget="80%", **options):
        return compress_depth(model, budget, backend=arithmetic_backend(), **options)

    return run


def outputs(network, inputs):
    with torch.no_grad():
        return torch.cat([tensor.flatten(1) for tensor in tensors_of(network(*inputs))], 1)


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_compressed_saved_loaded_and_exported(name, compressed, tmp_path):
    make, inputs, names = CASES[name][0], CASES[name][1](), CASES[name][2]
    result = compressed(make(), data=[inputs], inputs=names, output_dir=tmp_path)
    assert result.measured_ms <= 0.8 * result.original_ms
    assert len(result.plan) > 0
    assert [tuple(x.shape) for x in result.example_inputs] == [(1, *x.shape[1:]) for x in inputs]
    loaded, wanted = depthcomp.load(tmp_path), outputs(result.model, inputs)
    assert torch.equal(outputs(loaded, inputs), wanted)
    assert torch.equal(outputs(lambda a, b: loaded(**{names[1]: b, names[0]: a}), inputs), wanted)
    assert [x.dtype for x in load_result(tmp_path).example_inputs] == [x.dtype for x in inputs]
    files = {5: to_onnx(loaded, inputs, dynamic_batch=True), 1: (tmp_path / "model.onnx").read_bytes()}
    for rows, content in files.items():
        session = onnxruntime.InferenceSession(content)
        assert [value.name for value in session.get_inputs()] == list(names)
        (scores,) = session.run(None, {name: x[:rows].numpy() for name, x in zip(names, inputs, strict=True)})
        assert np.abs(scores - wanted[:rows].numpy()).max() < 1e-4 * float(wanted.abs().max())
    if name == "siamese":  # the layers of the trunk are called once, and |f(a) - f(b)| is symmetric with one f
        for network in (result.model, result.trainable):
            layers = [node.target for node in network.graph.find_nodes(op="call_module")]
            assert len(layers) == len(set(layers))
        assert torch.allclose(outputs(result.model, inputs[::-1]), wanted, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_tuples_dicts_and_arrays_are_the_same_data(name):
    make, inputs, names = CASES[name][0], CASES[name][1](), CASES[name][2]
    named = dict(zip(names, inputs, strict=True))
    forms = [
        {"data": [inputs], "inputs": names},
        {"data": [(inputs, torch.zeros(COUNT, 2, 2))], "inputs": names},
        {"data": [(*inputs, "no labels")], "inputs": names},
        {"data": [dict(reversed(named.items()))], "inputs": names},
        {"data": {key: value.numpy() for key, value in named.items()}, "inputs": tuple(reversed(names))},
        {"data": DataLoader(TensorDataset(*inputs), 7), "example_inputs": {key: x[:1] for key, x in named.items()}},
        {"data": [{key: x[i] for key, x in named.items()} for i in range(COUNT)], "inputs": names},
    ]
    if name != "keyword":  # where the forward needs both, nobody has to say so
        forms += [{"data": [named]}, {"data": [inputs], "example_inputs": tuple(x[:1] for x in inputs)}]
    found = [prepare(make(), **{"example_inputs": None, **each}, val_data=None, seed=0) for each in forms]
    for prepared in found:
        assert str(prepared.network.gm.graph) == str(found[0].network.gm.graph)
        assert calibration_hash(prepared.calibration) == calibration_hash(found[0].calibration)
        assert all(map(torch.equal, prepared.example.tensors, found[0].example.tensors))


def test_tuples_and_dicts_give_the_same_result(compressed):
    inputs = images(), drawn(5, seed=2)
    one, other = (
        compressed(with_vector(), data=data, kinds=("narrow",))
        for data in ([inputs], [{"vector": inputs[1], "image": inputs[0]}])
    )
    assert (one.plan, one.loss) == (other.plan, other.loss)
    assert torch.equal(outputs(one.model, inputs), outputs(other.model, inputs))


def test_a_siamese_network_is_fine_tuned(compressed, tmp_path):
    inputs = images(), images(1)
    labels = siamese()(*inputs).argmax(1)
    config = FinetuneConfig(epochs=1, batch_size=8)
    result = compressed(
        siamese(), data=TensorDataset(*inputs, labels), finetune=config, output_dir=tmp_path, kinds=("narrow",)
    )
    assert result.finetuned.metric == "accuracy"
    assert result.finetuned.loss_after <= result.finetuned.loss_before
    assert torch.equal(outputs(depthcomp.load(tmp_path), inputs), outputs(result.model, inputs))


def test_shards_score_for_a_run_with_a_loss_of_the_users(compressed, tmp_path):
    seen, inputs = [], (images(), drawn(5, seed=2))

    def loss(original, found, batch):
        seen.append([tuple(x.shape[1:]) for x in batch])
        return float((original - found).square().mean())

    options = {"data": [inputs], "importance": "calibrated", "kinds": ("narrow",)}
    result = compressed(with_vector(), loss=loss, **options)
    assert seen
    assert all(shapes == [(3, 10, 10), (5,)] for shapes in seen)
    assert score_shard(with_vector(), "0/1", tmp_path, table=result.table, **options) > 0


def test_a_mask_of_booleans_is_measured():
    gm = capture(with_mask(), (images()[:1], mask()[:1]))
    for backend in ("onnxruntime", "torch"):
        timer = NetworkTimer(gm, (images()[:1], mask()[:1]), create_backend(backend))
        assert timer.original.median_ms > 0


ONE = {"example_inputs": images()[:1]}


@pytest.mark.parametrize(
    ("model", "options", "error", "sentence"),
    [
        (siamese, {}, CaptureError, r"Siamese takes left, right, and no synthetic data .*; pass data="),
        (siamese, ONE, CaptureError, r"example_inputs holds 1 input, but the network takes left, right; give a tuple"),
        (siamese, {"inputs": ("left",)}, CaptureError, r"inputs left do not fit Siamese: .* needs right, too"),
        (siamese, {"inputs": ("left", "top")}, CaptureError, r"takes left, right and has no 'top'"),
        (siamese, {"inputs": "left"}, CaptureError, r"inputs \(='left'\) must be different names of arguments"),
        (siamese, {"data": images()}, DataError, r"an item of data is a Tensor, but the network takes left, right"),
        (siamese, {"data": [(images(),)]}, DataError, r"an item of data is 1 parts"),
        (siamese, {"data": [{"left": images()}]}, DataError, r"is a dict without right, but the network takes"),
        (siamese, {"data": [(images(), images()[:3])]}, DataError, r"numbers of examples \(left 24, right 3\)"),
        (siamese, {"data": [("a.png", "b.png")]}, DataError, r"holds a str as an input; networks of several inputs"),
        (siamese, {"data": [(images(), images() / 0)]}, DataError, r"data holds NaN or infinite values"),
        (siamese, {"inputs": ("left", "right"), "module": "trunk"}, DepthCompError, r"leave it out beside module"),
        (by_keyword, {"data": [{"pixel_values": images(), "mask": mask()}]}, DataError, r"holds mask, .* inputs="),
        (by_keyword, {"example_inputs": (images(),) * 4}, CaptureError, r"holds 4 inputs, .* no more by position"),
        (
            with_vector,
            {"data": [(images(), mask())], "example_inputs": (images()[:1], drawn(5)[:1])},
            DataError,
            r"data holds vector of shape \(10, 10\), but the model was captured for \(5,\)",
        ),
        (
            with_mask,
            {"data": [(images(), mask().float())], "example_inputs": (images()[:1], mask()[:1])},
            DataError,
            r"data holds mask of torch.float32, but the model was captured for torch.bool; convert",
        ),
        (
            with_vector,
            {"example_inputs": (images()[:2], drawn(5)[:1]), "data": [(images(), drawn(5))]},
            CaptureError,
            r"the first dimension of each must be the batch",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(model, options, error, sentence, compressed):
    with pytest.raises(error, match=sentence):
        compressed(model(), **options)
