"""What an operator costs inside of a network: changes of layout at its ends are told apart and removed."""

from dataclasses import dataclass

import onnx
import pytest
from fake_backend import FakeBackend, conv, net_ms

from latency_tables import OperatorSignature, create_backend, measure
from latency_tables.backends.capabilities import layout_share
from latency_tables.backends.layout_share import share_of_changes
from latency_tables.operators.models import call_overhead_model, operator_model

pytestmark = pytest.mark.whole

WIDE = OperatorSignature(op="conv", batch=1, in_channels=32, out_channels=64, in_size=(40, 40), kernel=(1, 1))
BACKENDS = pytest.mark.parametrize("name", ["onnxruntime", "openvino"])


@dataclass
class ReorderingBackend(FakeBackend):
    """Spends a quarter of each part on changes of layout."""

    def build_part(self, onnx_model):
        runner = self.build(onnx_model)
        runner.layout_share = 0.25
        return runner


def test_the_share_is_that_of_the_medians_of_the_warm_runs():
    cold, warm, spiky = [8.0, 7.0, 9.0], [0.1, 0.1, 0.1], [0.3, 50.0, 0.3]
    assert share_of_changes([(True, cold + warm), (False, cold + spiky), (True, [*warm, 0.2, 0.2, 9.0])]) == (
        pytest.approx(0.5)
    )
    assert share_of_changes([(False, [0.2])]) == 0
    assert share_of_changes([(True, [0.0]), (False, [0.0])]) == 0


def test_changes_of_layout_are_removed_after_the_call_overhead_and_recorded():
    entry = measure([conv()], ReorderingBackend()).entries[conv().key]
    assert entry.ms == pytest.approx(0.75 * net_ms(conv()))
    assert entry.layout_share == 0.25
    plain = measure([conv()], FakeBackend()).entries[conv().key]
    assert plain.ms == pytest.approx(net_ms(conv()))
    assert plain.layout_share == 0


@BACKENDS
def test_a_part_knows_what_it_spends_on_layouts_and_a_whole_network_keeps_all(name):
    backend = create_backend(name)
    part, whole = backend.build_part(operator_model(WIDE)), backend.build(operator_model(WIDE))
    assert layout_share(whole) == 0
    assert 0 <= layout_share(part) < 1
    assert part.time_ms(2) > 0
    part.close()
    whole.close()


def test_onnxruntimes_changes_of_layout_are_those_that_it_puts_into_the_model(tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(operator_model(WIDE), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    reorders = any(node.op_type.startswith("Reorder") for node in nodes)
    assert (layout_share(create_backend("onnxruntime").build_part(operator_model(WIDE))) > 0) == reorders


def test_parts_of_openvino_take_and_return_images_channels_last():
    part = create_backend("openvino").build_part(operator_model(WIDE))
    assert [values.shape for values in part._runner.inputs] == [(1, 40, 40, 32)]
    assert [values.shape for values in part._runner.outputs] == [(1, 40, 40, 64)]


@BACKENDS
def test_what_has_no_layout_of_its_own_spends_nothing_on_it(name):
    assert layout_share(create_backend(name).build_part(call_overhead_model())) == 0
