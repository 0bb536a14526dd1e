"""The one call, end to end, with the backends that really run networks."""

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp import compress_depth
from depthcomp.latency.timing import Network
from fx_passes import capture
from fx_passes.operators import NORMS
from latency_tables import create_backend, time_interleaved

pytestmark = pytest.mark.whole

SIZE = 96  # large enough that convolutions, not calls, take the time


@pytest.fixture
def short_samples(monkeypatch):
    """Measurements that are coarse and quick."""
    monkeypatch.setattr("latency_tables.measuring.timing.time_interleaved", short)
    monkeypatch.setattr("latency_tables.measuring.measure.SAMPLE_MS", 1.0)
    monkeypatch.setattr("latency_tables.measuring.measure.WARMUP_MS", 2.0)


def short(runners, **arguments):
    return time_interleaved(runners, **{**arguments, "sample_ms": 2.0, "warmup_ms": 5.0})


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_a_network_is_compressed(name, short_samples):
    data = nn.functional.interpolate(images(12), SIZE)
    result = compress_depth(tiny_net(), "95%", data=[data], backend=name, kinds=["merge", "fit", "drop"])
    assert result.environment == create_backend(name).environment() == result.table.environment
    assert 0 < result.measured_ms <= result.budget_ms < result.original_ms
    assert result.depth < result.original_depth
    assert result.model(data).shape == tiny_net()(data).shape


@pytest.fixture(scope="module")
def captured():
    return capture(nn.Sequential(*tiny_net(), nn.Dropout()).eval(), EXAMPLE)


def test_a_network_as_a_module_has_no_norms_and_no_dropout(captured):
    module, (example,) = Network(captured, (EXAMPLE,)).module()
    assert example is EXAMPLE
    assert any(isinstance(layer, NORMS) for layer in captured.modules())
    assert not any(isinstance(layer, (*NORMS, nn.Dropout)) for layer in module.modules())
    assert not any(layer.training for layer in module.modules())
    x = images(3)
    assert torch.allclose(module(x), captured(x), atol=1e-5)


def test_making_a_module_of_a_network_leaves_it_alone(captured):
    state, code = {name: value.clone() for name, value in captured.state_dict().items()}, captured.code
    Network(captured, (EXAMPLE,)).module()
    assert captured.code == code
    assert captured.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in captured.state_dict().items())


def test_a_network_is_exported_once(captured, monkeypatch):
    exported = []
    monkeypatch.setattr("depthcomp.latency.timing.to_onnx", lambda gm, inputs: exported.append(gm) or b"model")
    network = Network(captured, (EXAMPLE,))
    assert network.onnx() == network.onnx() == b"model"
    assert exported == [captured]
    network.module()
