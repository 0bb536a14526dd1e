"""Networks of several inputs: two images through one trunk, an image with a vector, with a mask, and by keyword."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from several_inputs import COUNT, by_keyword, drawn, images, mask, siamese, with_mask, with_vector
from torch.utils.data import DataLoader, TensorDataset

import depthcomp
from depthcomp import FinetuneConfig, compress_depth
from depthcomp.errors import CaptureError, DataError, DepthCompError
from depthcomp.export.onnx_model import to_onnx
from depthcomp.results.loading import load_result
from depthcomp.runs.shard import score_shard
from fx_passes.outputs import tensors_of
from latency_tables import create_backend

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:the network predicts the labels")]

BOTH = ("pixel_values", "mask")
CASES = {
    "siamese": (siamese, lambda: (images(), images(1)), ("left", "right")),
    "vector": (with_vector, lambda: (images(), drawn(5, seed=2)), ("image", "vector")),
    "mask": (with_mask, lambda: (images(), mask()), ("image", "mask")),
    "keyword": (by_keyword, lambda: (images(), mask().float()), BOTH),
}


@pytest.fixture(params=CASES)
def case(request):
    make, inputs, names = CASES[request.param]
    return make(), inputs(), names


@pytest.fixture
def compressed(arithmetic_backend):
    def run(model, budget="80%", **options):
        return compress_depth(model, budget, backend=arithmetic_backend(), **options)

    return run


def outputs(network, inputs):
    with torch.no_grad():
        return torch.cat([tensor.flatten(1) for tensor in tensors_of(network(*inputs))], 1)


def test_a_network_is_compressed_saved_loaded_and_exported(case, compressed, tmp_path):
    model, inputs, names = case
    result = compressed(model, data=[inputs], inputs=names, output_dir=tmp_path)
    assert result.measured_ms < 0.8 * result.original_ms
    assert len(result.plan) > 0
    assert [tuple(x.shape) for x in result.example_inputs] == [(1, *x.shape[1:]) for x in inputs]
    found, loaded = result.model(*inputs), depthcomp.load(tmp_path)
    assert torch.equal(outputs(result.model, inputs), outputs(loaded, inputs))
    by_name = loaded(**dict(reversed(list(zip(names, inputs, strict=True)))))
    assert all(map(torch.equal, tensors_of(by_name), tensors_of(found)))
    assert load_result(tmp_path).example_inputs[1].dtype == inputs[1].dtype
    wanted = outputs(result.model, inputs).numpy()
    for model_file, rows in (
        (to_onnx(loaded, inputs, dynamic_batch=True), 5),
        ((tmp_path / "model.onnx").read_bytes(), 1),
    ):
        session = onnxruntime.InferenceSession(model_file)
        assert [value.name for value in session.get_inputs()] == list(names)
        (scores,) = session.run(None, {name: x[:rows].numpy() for name, x in zip(names, inputs, strict=True)})
        assert np.abs(scores - wanted[:rows]).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_tuples_dicts_and_arrays_give_the_same_result(name, compressed):
    make, inputs, names = CASES[name][0], CASES[name][1](), CASES[name][2]
    labels, named = torch.arange(COUNT) % 3, dict(zip(names, inputs, strict=True))
    forms = [
        {"data": [inputs], "inputs": names},
        {"data": [(inputs, labels + 7.5)], "inputs": names},
        {"data": [dict(reversed(named.items()))], "inputs": names},
        {"data": {key: value.numpy() for key, value in named.items()}, "inputs": tuple(reversed(names))},
        {"data": DataLoader(TensorDataset(*inputs), 7), "example_inputs": {key: x[:1] for key, x in named.items()}},
    ]
    if name != "keyword":  # where the forward needs both, nobody has to say so
        forms += [{"data": [named]}, {"data": [inputs], "example_inputs": tuple(x[:1] for x in inputs)}]
    found = [compressed(make(), **each) for each in forms]
    if name == "keyword":  # real labels say that outputs are values
        found.pop(1)
    for result in found:
        assert result.plan == found[0].plan
        assert result.loss == pytest.approx(found[0].loss, rel=1e-9)
        assert torch.equal(outputs(result.model, inputs), outputs(found[0].model, inputs))


def test_the_trunk_of_a_siamese_network_stays_one(compressed):
    inputs = images(), images(1)
    result = compressed(siamese(), data=[inputs], kinds=("fit", "merge", "drop"))
    assert result.depth < result.original_depth
    for network in (result.model, result.trainable):
        layers = [node.target for node in network.graph.find_nodes(op="call_module")]
        assert len(layers) == len(set(layers))
    swapped = outputs(result.model, inputs[::-1])
    assert torch.allclose(swapped, outputs(result.model, inputs), atol=1e-5)  # |f(a) - f(b)| with one f


def test_images_are_judged_in_pairs(compressed):
    """The loss of the returned plan is that of the whole network on pairs that belong together."""
    inputs = images(), images(1)
    result = compressed(siamese(), data=[inputs])
    other = compressed(siamese(), data=[(inputs[0], inputs[1].flip(0))])
    assert result.loss > 0
    assert result.loss != other.loss


@pytest.mark.parametrize("name", ["siamese", "vector"])
def test_a_network_is_fine_tuned_and_a_finished_run_is_taken_up(name, compressed, tmp_path):
    make, inputs, names = CASES[name][0], CASES[name][1](), CASES[name][2]
    labels = make()(*inputs).argmax(1)
    data = TensorDataset(*inputs, labels)
    config = FinetuneConfig(epochs=1, batch_size=8)
    result = compressed(make(), data=data, finetune=config, output_dir=tmp_path)
    assert result.finetuned.metric == "accuracy"
    assert result.finetuned.loss_after <= result.finetuned.loss_before
    named = [dict(zip((*names, "label"), (*inputs, labels), strict=True))]
    assert compressed(make(), data=named * 3, finetune=config).finetuned.metric == "accuracy"


def test_a_function_of_the_user_gets_a_tuple(compressed):
    seen = []

    def loss(original, found, batch):
        seen.append(batch)
        return float((original - found).square().mean())

    compressed(with_vector(), data=[(images(), drawn(5, seed=2))], loss=loss)
    assert all(isinstance(batch, tuple) and [x.ndim for x in batch] == [4, 2] for batch in seen)


def test_shards_score_a_network_of_several_inputs(compressed, tmp_path):
    inputs = images(), drawn(5, seed=2)
    result = compressed(with_vector(), data=[inputs], importance="calibrated")
    counts = [
        score_shard(with_vector(), f"{i}/2", tmp_path, table=result.table, data=[inputs], importance="calibrated")
        for i in range(2)
    ]
    again = compressed(with_vector(), data=[inputs], importance="calibrated", output_dir=tmp_path)
    assert sum(counts) > 0
    assert again.plan == result.plan


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_mask_of_booleans_is_measured(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = compress_depth(with_mask(), "97%", data=[(images(), mask())], backend=create_backend(backend))
    assert result.measured_ms > 0


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
        (siamese, {"data": [(images(), images()[:3])]}, DataError, r"different numbers of examples \(left 24, right 3\)"),
        (siamese, {"data": [("a.png", "b.png")]}, DataError, r"holds a str as an input; networks of several inputs"),
        (siamese, {"data": [(images(), images() / 0)]}, DataError, r"data holds NaN or infinite values"),
        (siamese, {"inputs": ("left", "right"), "module": "trunk"}, DepthCompError, r"leave it out beside module"),
        (by_keyword, {"data": [{"pixel_values": images(), "mask": mask()}]}, DataError, r"holds mask, which .* inputs="),
        (by_keyword, {"example_inputs": (images(),) * 4}, CaptureError, r"holds 4 inputs, but .* and no more by position"),
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
