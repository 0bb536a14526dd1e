"""Faults of other tools that time operators; each is a test here."""

import numpy as np
import onnx
import pytest
from fake_backend import FakeBackend, Machine, conv, model_ms

from latency_tables import OperatorSignature, measure
from latency_tables.operators.models import operator_model

pytestmark = pytest.mark.whole


def nodes(signature: OperatorSignature) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(operator_model(signature)).graph.node]


def test_an_activation_is_timed_only_where_there_is_one() -> None:
    assert nodes(conv()) == ["Conv"]
    assert nodes(conv(activation="relu")) == ["Conv", "Relu"]


def test_a_residual_sum_is_timed_where_there_is_one() -> None:
    signature = conv(residual=True, activation="relu")
    assert nodes(signature) == ["Conv", "Add", "Relu"]
    inputs = onnx.load_from_string(operator_model(signature)).graph.input
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in inputs}
    assert shapes == {"x": [1, 3, 11, 7], "residual": [1, 5, 9, 5]}


def test_operators_with_and_without_an_epilogue_have_entries_of_their_own() -> None:
    several = [conv(), conv(activation="relu"), conv(residual=True), conv(residual=True, activation="relu")]
    assert len(measure(several, FakeBackend())) == 4


def test_the_size_behind_a_pooling_is_another_operator() -> None:
    """Traced without its max-pool, every layer of a ResNet would be timed at four times its area."""
    before, behind = conv(64, 64, in_size=(112, 112)), conv(64, 64, in_size=(56, 56))
    table = measure([before, behind], FakeBackend())
    assert set(table.entries) == {before.key, behind.key}
    inputs = onnx.load_from_string(operator_model(behind)).graph.input[0].type.tensor_type.shape.dim
    assert [length.dim_value for length in inputs] == [1, 64, 56, 56]


@pytest.mark.parametrize("seed", range(5))
def test_samples_whose_deviation_is_85_percent_of_their_mean_leave_the_entry_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noisy = Machine(lambda now_ms: 1.0 if rng.random() < 0.8 else 1 + rng.exponential(6))
    signature = conv(40, 40)
    table = measure([signature], FakeBackend(machine=noisy))
    truth_ms = model_ms(operator_model(signature))
    samples = np.array([ms / inner for name, inner, ms in noisy.calls if name == "2"]) / truth_ms
    assert samples.std() > 0.85
    assert samples.mean() > 1.5  # what a mean of the samples would have said
    assert table.ms(signature) + table.method.overhead_ms == pytest.approx(truth_ms, rel=0.02)
