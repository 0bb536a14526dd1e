from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from fake_backend import conv
from numpy.typing import NDArray
from onnx.numpy_helper import to_array

from latency_tables import OperatorSignature
from latency_tables.operators.activations import ACTIVATIONS
from latency_tables.operators.models import input_shapes, operator_model, output_shape

pytestmark = pytest.mark.whole

Arrays = dict[str, NDArray[np.float32]]

REFERENCES = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.tensor(0.25)),
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}


def run_both(signature: OperatorSignature) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    model = operator_model(signature)
    rng = np.random.default_rng(7)
    shapes = input_shapes(signature)
    feeds = {name: (3 if name == "x" else 1) * rng.standard_normal(shapes[name], dtype=np.float32) for name in shapes}
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    weights = {tensor.name: to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}
    return session.run(None, feeds)[0], reference(signature, feeds, weights).numpy()


def reference(signature: OperatorSignature, feeds: Arrays, weights: Arrays) -> torch.Tensor:
    x, w = torch.from_numpy(feeds["x"]), {name: torch.tensor(value) for name, value in weights.items()}
    top, bottom, left, right = signature.padding
    padded = F.pad(x, (left, right) if signature.signals else (left, right, top, bottom))
    if signature.op == "conv" and signature.signals:
        stride, dilation = signature.stride[1], signature.dilation[1]
        y = F.conv1d(padded, w["weight"], w["bias"], stride, 0, dilation, signature.groups)
    elif signature.op == "conv":
        y = F.conv2d(padded, w["weight"], w["bias"], signature.stride, 0, signature.dilation, signature.groups)
    elif signature.op == "linear":
        y = x @ w["weight"] + w["bias"]
    elif signature.op == "avg_pool" and signature.signals:
        y = F.avg_pool1d(padded, signature.kernel[1], signature.stride[1])
    elif signature.op == "avg_pool":
        y = F.avg_pool2d(padded, signature.kernel, signature.stride)
    else:
        y = F.batch_norm(x, w["mean"], w["variance"], w["gain"], w["shift"])
    if signature.residual:
        y = y + torch.from_numpy(feeds["residual"])
    return REFERENCES[signature.activation](y) if signature.activation else y


def pool(**fields: Any) -> OperatorSignature:
    return OperatorSignature(op="avg_pool", batch=2, in_channels=5, out_channels=5, in_size=(11, 7), **fields)


def scale(**fields: Any) -> OperatorSignature:
    return OperatorSignature(op="scale", batch=2, in_channels=5, out_channels=5, in_size=(11, 7), **fields)


def linear(size: tuple[int, int], **fields: Any) -> OperatorSignature:
    return OperatorSignature(op="linear", batch=2, in_channels=6, out_channels=4, in_size=size, **fields)


SIGNATURES = [
    *(conv(activation=name) for name in sorted(ACTIVATIONS)),
    conv(batch=2),
    conv(residual=True),
    conv(residual=True, activation="relu"),
    conv(padding=(0, 1, 2, 3), stride=(2, 3), activation="silu"),
    conv(padding=(5, 4, 3, 2), kernel=(1, 1)),
    conv(6, 9, groups=3, kernel=(3, 2), dilation=(2, 3)),
    conv(16, 16, groups=16, padding=(1, 1, 1, 1), activation="hardswish", residual=True),
    pool(kernel=(3, 2), stride=(2, 1)),
    pool(kernel=(3, 3), padding=(1, 0, 2, 1), activation="relu"),
    pool(kernel=(4, 5), padding=(3, 2, 4, 0), residual=True),
    scale(),
    scale(residual=True, activation="prelu"),
    linear((1, 1)),
    linear((1, 1), residual=True, activation="prelu"),
    linear((7, 1), activation="gelu"),
    linear((5, 3), residual=True),
    linear((5, 3), activation="prelu"),
    *map(
        OperatorSignature.parse,
        [
            "conv 2x3x41 -> 5 k9 s4 p4,4 d1 g1 relu fp32",
            "conv 1x6x41 -> 9 k3 s1 p8,0 d4 g3 +add prelu fp32",
            "avg_pool 2x5x13 -> 5 k4 s2 p1,1 d1 g1 fp32",
            "avg_pool 1x5x13 -> 5 k3 s1 p2,0 d1 g1 fp32",
            "scale 2x5x13 -> 5 k1 s1 p0,0 d1 g1 silu fp32",
        ],
    ),
]


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.key)
def test_the_model_computes_what_the_signature_says(signature: OperatorSignature) -> None:
    got, expected = run_both(signature)
    assert got.shape == output_shape(signature)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_activation_has_a_reference() -> None:
    assert set(REFERENCES) == set(ACTIVATIONS)


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert operator_model(conv(), seed=3) == operator_model(conv(), seed=3)
    assert operator_model(conv(), seed=3) != operator_model(conv(), seed=4)


def test_he_scale_keeps_the_second_moment_behind_a_relu() -> None:
    model = onnx.load_from_string(operator_model(conv(64, 64)))
    weight = to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "weight"))
    assert weight.std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.05)
