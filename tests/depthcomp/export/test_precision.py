"""A network as ONNX in fp32, fp16 and int8, with a fixed or a dynamic batch."""

import copy
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp.errors import ArtifactError, DataError
from depthcomp.export.onnx_model import BATCH, relative_error, require_sound, to_onnx
from depthcomp.export.precision import in_half, onnx_in_precision, quantized
from fx_passes import capture

pytestmark = pytest.mark.whole

INPUTS = (images(2),)


@pytest.fixture(scope="module")
def network():
    return capture(tiny_net(), EXAMPLE)


def sizes(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def outputs(data, x):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_a_dynamic_batch_takes_any_size_and_is_called_batch(network):
    data = onnx_in_precision(network, (EXAMPLE,), batch=(1, 3, 8))
    graph = onnx.load_from_string(data).graph
    assert [sizes(value)[0] for value in (*graph.input, *graph.output)] == [BATCH, BATCH]
    for count in (1, 2, 5):
        x = images(count)
        np.testing.assert_allclose(outputs(data, x), network(x).detach().numpy(), rtol=1e-3, atol=1e-4)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_a_network_that_fixes_its_batch_has_no_dynamic_one():
    with pytest.raises(ArtifactError, match="FixedBatch cannot be exported to ONNX"):
        to_onnx(FixedBatch(), (torch.randn(2, 3),), dynamic_batch=True)


def test_half_precision_is_a_property_of_the_graph(network):
    before = copy.deepcopy(network.state_dict())
    graph = onnx.load_from_string(onnx_in_precision(network, (EXAMPLE,), "fp16")).graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds | {weight.data_type for weight in graph.initializer if weight.dims} <= {
        TensorProto.FLOAT16,
        TensorProto.INT64,
    }
    assert "Cast" not in {node.op_type for node in graph.node}
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_norms_are_folded_before_weights_are_rounded():
    """A norm with a variance that float16 cannot hold is harmless once it is folded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e4)
        model[1].running_var.fill_(1e8)
    x = torch.randn(1, 3, 9, 11)
    gm = capture(model, x)
    half = in_half(gm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in half.modules())
    torch.testing.assert_close(half(x.half()).float(), gm(x), rtol=1e-2, atol=1e-2)


def test_weights_beyond_half_precision_are_refused(network):
    gm = copy.deepcopy(network)
    with torch.no_grad():
        next(module for module in gm.modules() if isinstance(module, nn.Linear)).weight.fill_(1e6)
    with pytest.raises(
        ArtifactError, match=r"weight' leaves the range of float16 \(largest value 65504\); export in fp32"
    ):
        onnx_in_precision(gm, (EXAMPLE,), "fp16")


def test_int8_is_symmetric_and_per_channel(network):
    model = onnx.load_from_string(onnx_in_precision(network, (EXAMPLE,), "int8", data=images(8)))
    values = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not values[node.input[2]].any() and values[node.input[2]].dtype == np.int8 for node in quantizers)
    assert "QuantizeLinear" in {node.op_type for node in quantizers}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    made_by = {node.output[0]: node for node in model.graph.node}
    for node in convolutions:
        assert made_by[node.input[0]].op_type == made_by[node.input[1]].op_type == "DequantizeLinear"
        weight = made_by[node.input[1]]
        assert values[weight.input[1]].shape == values[weight.input[0]].shape[:1], "one scale per channel"


def test_lower_precision_costs_what_it_costs(network):
    errors = [
        relative_error(onnx_in_precision(network, INPUTS, precision, data=images(16)), network, INPUTS)
        for precision in ("fp32", "fp16", "int8")
    ]
    assert errors[0] < 1e-5 < errors[1] < 0.01 < errors[2] < 0.2


def test_int8_without_images_is_refused(network):
    with pytest.raises(DataError, match=r"int8 needs images .* pass data= \(on the command line --data DIR\)"):
        onnx_in_precision(network, (EXAMPLE,), "int8")


def test_calibration_fills_up_the_last_batch_of_a_static_model(network):
    quantized(to_onnx(network, (images(3),)), images(3), images(4))


class WithMask(nn.Module):
    """A convolution on images with a mask."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image, mask):
        return self.conv(image * mask)


def test_int8_takes_the_ranges_of_all_inputs():
    pair = images(2), (images(2, seed=2)[:, :1] > 0).float()
    gm = capture(WithMask().eval(), pair)
    data = onnx_in_precision(gm, pair, "int8", data=[{"mask": pair[1], "image": pair[0]}])
    assert relative_error(data, gm, pair) < 0.1


def test_another_precision_is_refused(network):
    with pytest.raises(ArtifactError, match=r"precision \(='bf16'\) must be one of fp32, fp16, int8"):
        onnx_in_precision(network, (EXAMPLE,), "bf16")


def test_a_model_of_another_network_is_not_sound(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(module for module in other.modules() if isinstance(module, nn.Linear)).bias.add_(1)
    with pytest.raises(ArtifactError, match="output 0 of the exported network differs from torch"):
        require_sound(to_onnx(other, INPUTS), network, [INPUTS])


def test_quantizing_is_silent(network, capfd, caplog):
    onnx_in_precision(network, (EXAMPLE,), "int8", data=images(4))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
