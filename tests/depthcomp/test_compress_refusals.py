"""What the one call refuses, in one sentence and before any work."""

import re

import pytest
import torch
from tiny_network import EXAMPLE, images, short_chain, tiny_net
from torch import nn

from depthcomp import compress_depth
from depthcomp.errors import (
    ArtifactError,
    BackendUnavailableError,
    BudgetError,
    CaptureError,
    DataError,
    DepthCompError,
    TableError,
)
from depthcomp.preparation import needed_operators
from latency_tables import Environment, LatencyTable, Method, create_backend

pytestmark = pytest.mark.whole


class Untouchable:
    """A backend that knows where it is, and fails the test when it is asked to measure."""

    def environment(self):
        return Environment(
            backend="none", backend_version="1.0", device="nowhere", threads=1, precision="fp32",
            os="none", python="3.11", machine="none",
        )  # fmt: skip

    def build(self, onnx_model):
        raise AssertionError("the backend was asked to measure")


def untouchable_data():
    raise AssertionError("the data were read")
    yield


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_an_unwritable_folder_is_refused_before_any_work(tmp_path, inside):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot create the folder"):
        compress_depth(
            tiny_net(), "75%", data=untouchable_data(), backend=Untouchable(), output_dir=tmp_path / "file" / inside
        )
    assert (tmp_path / "file").read_text() == "in the way"


class Spectral(nn.Module):
    """Calls a function that no file may name."""

    def __init__(self):
        super().__init__()
        self.net = short_chain()

    def forward(self, x):
        return self.net(torch.fft.ifft2(torch.fft.fft2(x)).real)


UNSTORABLE = "the network cannot be stored: fft_fft2 .* is not on the list"


def test_what_cannot_be_stored_is_refused_before_any_measurement(tmp_path):
    with pytest.raises(ArtifactError, match=UNSTORABLE + ".*leave out output_dir"):
        compress_depth(Spectral(), "75%", data=images(), backend=Untouchable(), output_dir=tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*scenes")
def test_what_cannot_be_stored_is_compressed_where_nothing_is_saved(arithmetic_backend):
    said = "the result can be exported, but not saved: " + UNSTORABLE
    with pytest.warns(UserWarning, match=said):
        result = compress_depth(Spectral(), "75%", data=images(), backend=arithmetic_backend())
    assert any(re.match(said, note) for note in result.warnings)
    assert result.measured_ms < result.original_ms


@pytest.mark.filterwarnings("ignore:.*scenes")
def test_a_result_that_cannot_be_saved_is_returned(arithmetic_backend, tmp_path, monkeypatch):
    def full(*_, **__):
        raise ArtifactError("cannot write model.onnx: No space left on device")

    monkeypatch.setattr("depthcomp.results.saving.export_onnx", full)
    with pytest.warns(UserWarning, match="the result could not be saved, and is returned: .*No space left"):
        result = compress_depth(
            short_chain(), "75%", data=images(), backend=arithmetic_backend(), output_dir=tmp_path / "out"
        )
    assert result.measured_ms < result.original_ms
    assert "No space left" in result.warnings[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision .='int4'. must be"),
        ({"importance": "guessed"}, "importance .='guessed'. must be"),
        ({"finetune": 3}, "finetune .=3. must be a FinetuneConfig"),
        ({"seed": -1}, r"seed \(=-1\) must be a whole number from 0 to"),
        ({"seed": 0.5}, r"seed \(=0.5\) must be a whole number"),
        ({"method": "uniform", "importance": "typo"}, r"importance \(='typo'\) must be one of"),
    ],
)
def test_values_that_are_not_supported(options, message):
    with pytest.raises(DepthCompError, match=message):
        compress_depth(tiny_net(), "75%", data=untouchable_data(), backend=Untouchable(), **options)


@pytest.mark.parametrize("budget", [0.7, "70", "120%"])
def test_a_malformed_budget_is_refused_before_any_work(budget):
    with pytest.raises(BudgetError, match="budget"):
        compress_depth(tiny_net(), budget, data=untouchable_data(), backend=Untouchable())


def test_an_unknown_backend_is_refused_before_any_work():
    with pytest.raises(DepthCompError, match="abacus"):
        compress_depth(tiny_net(), "75%", data=untouchable_data(), backend="abacus")


@pytest.mark.parametrize("backend", [3, None, torch.device("cpu"), type(create_backend("onnxruntime"))])
def test_what_is_no_backend_is_refused_before_any_work(backend):
    sentence = r"backend .=.*. must be one of auto, onnxruntime, .*or an instance such as create_backend\("
    with pytest.raises(BackendUnavailableError, match=sentence):
        compress_depth(tiny_net(), "75%", data=untouchable_data(), backend=backend)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("absent/table.json", r"cannot write the latency table .*: its folder does not exist; create that first"),
        (".", "cannot write the latency table .*: it is a folder; add a file name to it"),
        (3, r"table .=3. must be a LatencyTable or the path of one"),
    ],
)
def test_a_table_that_cannot_be_kept_is_refused_before_any_work(tmp_path, monkeypatch, table, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match=sentence):
        compress_depth(tiny_net(), "75%", data=untouchable_data(), backend=Untouchable(), table=table)


def test_a_network_with_an_operator_that_killed_its_process_before_is_not_measured():
    kept = next(s for s, places in needed_operators(tiny_net(), EXAMPLE).items() if "4.conv1" in places)
    method = Method(
        estimator="none", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.0
    )
    table = LatencyTable(Untouchable().environment(), method, {}, {kept.key: "its process died of signal SIGSEGV"})
    with pytest.raises(
        TableError, match="not be measured for the latency table: its process died of signal SIGSEGV; try"
    ):
        compress_depth(tiny_net(), "75%", data=[images(8)], backend=Untouchable(), table=table)


@pytest.mark.parametrize("model", [3, nn.DataParallel(tiny_net()), nn.Sequential(nn.LazyConv2d(5, 3), nn.ReLU())])
def test_a_model_that_cannot_be_captured_is_refused_before_the_data_are_read(model):
    with pytest.raises(CaptureError, match=r"must be a torch.nn.Module|use model\.module|run model\(example\) once"):
        compress_depth(model, "75%", data=untouchable_data(), backend=Untouchable())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value):
    model = tiny_net()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = value
    with pytest.raises(CaptureError, match=r"(?i)nan|inf|finite"):
        compress_depth(model, "75%", data=[images(8)], backend=Untouchable())


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(3, 32, 32),
        torch.zeros(1, 4, 32, 32),
        torch.zeros(1, 3, 2, 2),
        (EXAMPLE, EXAMPLE),
        "x",
        EXAMPLE.numpy(),
        32,
        (1, 3, 32, 32),
    ],
)
def test_example_inputs_that_do_not_fit(example):
    with pytest.raises(CaptureError, match="example_inputs"):
        compress_depth(tiny_net(), "75%", example_inputs=example, data=[images(8)], backend=Untouchable())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, "data holds no images"),
        ({"data": [], "example_inputs": EXAMPLE}, "data holds no images"),
        ({"data": [images(8)], "val_data": iter([])}, "val_data holds no images"),
        ({"data": [images(8)], "example_inputs": torch.zeros(1, 3, 40, 40)}, r"data holds images of shape \(3, 32"),
        ({"data": [torch.full((2, 3, 32, 32), torch.nan)], "example_inputs": EXAMPLE}, "data holds NaN"),
        ({"data": ["photo.png"]}, r"photo\.png cannot be decoded as an image: .* No such file"),
        ({"data": [3], "example_inputs": EXAMPLE}, "an item of data holds a int"),
        ({"data": [images(8)], "val_data": [images(8).long()]}, "val_data holds images of torch.int64"),
    ],
)
def test_unusable_data(options, message):
    with pytest.raises(DataError, match=message):
        compress_depth(tiny_net(), "75%", backend=Untouchable(), **options)


def test_messages_have_no_trailing_tuple(arithmetic_backend):
    """`raise X("a", b)` would print a tuple."""
    with pytest.raises(BudgetError) as caught:  # its text is looked at below
        compress_depth(tiny_net(), "1000ms", data=[images(8)], backend=arithmetic_backend())
    assert len(caught.value.args) == 1
    assert not re.match(r"^\(", str(caught.value))
