"""Forwards that proxies cannot follow, recorded on the example: the graph equals the model, for other batches too."""

import inspect
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from depthcomp_errors import CaptureError
from fx_passes import capture, enumerate_spans

X = torch.randn(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
LATER = torch.randn(5, 3, 9, 7, generator=torch.Generator().manual_seed(1))


class Body(nn.Module):
    """Two convolutions with norms, and a function of their output."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3))
        self.register_buffer("sizes", torch.tensor([2, 3]))
        self.register_buffer("pads", torch.tensor([[1, 1], [2, 2]]))
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.dropout = nn.Dropout()
        self.function = function

    def forward(self, x):
        assert isinstance(x, torch.Tensor)
        return self.function(self, self.body(x))


def filled(net, y):
    out = torch.zeros(y.shape[0], 2, 6)
    out[:, 0] = y.mean((2, 3))
    out[:, 1] = y.amax((2, 3))
    return out


def written_through_parts(net, y):
    part = y[:, 1:3]
    part *= 2
    part[:, 0] += 1
    return y * net.scale


def read_under_another_name(net, y):
    flat = y.flatten(2)
    y[:, 0] = 0
    return flat.sum(2), y


def over_sizes(net, y):
    rows = [row * index for index, row in enumerate(y.unbind(2))]
    return torch.stack(rows, 2) + torch.arange(y.shape[3])


def by_the_batch(net, y):
    n, c, *_ = y.shape
    a, b = net.sizes.tolist()
    grouped = y.reshape(n * a, b, -1).mean(2)
    return grouped.view(n, c) + torch.ones(n, 1).expand(n, c)


WAYS = {
    "isinstance": lambda net, y: y * net.scale,
    "method of the class": lambda net, y: torch.Tensor.flatten(y, 1),
    "NumPy sizes": lambda net, y: F.interpolate(y, size=tuple(np.array([4, 4]) * 2))[:, : np.int64(4)] * np.float64(2),
    "tolist": lambda net, y: F.pad(y, net.pads.flatten().tolist()),
    "item": lambda net, y: y[:, : net.sizes[1].item()],
    "numpy": lambda net, y: y.reshape(-1, *net.sizes.numpy(), 35),
    "loop over rows": over_sizes,
    "write by index": lambda net, y: (y.__setitem__((slice(None), 0), 0), y)[1],
    "filled zeros": filled,
    "write to parts": written_through_parts,
    "read again": read_under_another_name,
    "batch sizes": by_the_batch,
    "arithmetic": lambda net, y: 1 - y / 3 + 2**y - (3 * y) ** 2 // 1 + -y % 2,
    "out": lambda net, y: torch.add(y, 1, out=torch.empty_like(y)),
    "branch on shapes": lambda net, y: y[..., :5] if y.shape[-1] > 4 and y.dtype == torch.float32 else y,
    "no gradient": lambda net, y: y * torch.sigmoid(y.detach()) + y.data,
    "dict": lambda net, y: {"y": y, "rows": [y[:, 0], (y.topk(2, 1).values, 3)]},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_recorded_graphs_compute_what_the_model_computes(way):
    net = Body(way).eval()
    gm = capture(net, X)
    for images in (X, LATER, LATER[:2]):
        with torch.no_grad():
            _require_equal(gm(images.clone()), net(images.clone()))
    assert any(span.choices for span in enumerate_spans(gm))


def _require_equal(found, wanted):
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        _require_equal(list(found.values()), list(wanted.values()))
    elif isinstance(wanted, list | tuple):
        for pair in zip(found, wanted, strict=True):
            _require_equal(*pair)
    else:
        assert found == wanted


def test_a_layer_that_returns_its_input_is_not_in_the_way_of_a_sum():
    gm = capture(Body(lambda net, y: y + torch.Tensor.relu(net.dropout(y))).eval(), X)
    (add,) = gm.graph.find_nodes(op="call_function", target=operator.add)
    assert add.all_input_nodes[0].name == "body_3"


def test_weights_stay_trainable():
    net = Body(WAYS["isinstance"]).eval()
    names = {name for name, _ in capture(net, X).named_parameters()}
    assert {"body.0.weight", "body.1.weight", "body.3.bias"} <= names
    gm = capture(net, X)
    gm(X).sum().backward()
    assert all(parameter.grad is not None for parameter in gm.parameters())


@torch.fx.wrap
def pick(y):
    return y if y.sum() > 0 else -y


def test_a_function_marked_with_wrap_is_one_call():
    net = Body(lambda net, y: pick(y)).eval()
    gm = capture(net, X)
    assert [node.target.__name__ for node in gm.graph.find_nodes(op="call_function", target=inspect.unwrap(pick))]
    for images in (LATER, -LATER):
        assert torch.equal(gm(images), net(images))


def branching(net, y):
    return y if y.sum() > 0 else -y


def reading(net, y):
    return y * float(y.mean())


def slicing(net, y):
    return y[:, : y.argmax() % 3]


def counting(net, y):
    return y.flatten(1)[:, : y[y > 0].shape[0] % 3]


def looping(net, y):
    return sum(y.flatten()[index] for index in torch.where(y.flatten() > -9)[0])


@pytest.mark.parametrize("way", [branching, reading, slicing, counting, looping])
def test_what_depends_on_values_is_refused_with_its_line(way):
    line = inspect.getsourcelines(way)[1] + 1
    with pytest.raises(CaptureError, match=rf"test_recording\.py:{line}: .*torch\.where"):
        capture(Body(way), X)


def test_a_loop_over_the_images_fixes_the_batch():
    net = Body(lambda net, y: torch.stack([y[index] * index for index in range(y.shape[0])])).eval()
    gm = capture(net, LATER)
    assert torch.equal(gm(LATER), net(LATER))


def test_constants_are_what_they_were_when_they_were_read():
    def way(net, y):
        table = torch.zeros(5)
        first = y[:, :5, 0] + table
        table += 1
        return first, y[:, :5, 0] * table, table[0].item()

    net = Body(way).eval()
    _require_equal(capture(net, X)(X), net(X))


def test_a_write_to_a_part_of_a_tensor_that_shows_no_index_is_refused_when_the_tensor_is_read():
    def way(net, y):
        y.transpose(2, 3)[:, 0] = 0
        return y

    with pytest.raises(CaptureError, match="is read after a write to a tensor that shares its memory"):
        capture(Body(way), X)
