"""A part of a network that can be captured: the outputs of the whole judge, the budget is the part's."""

import json

import pytest
import torch
from branched_network import Branched
from torch import nn

import depthcomp
from depthcomp import compress_depth
from depthcomp.data.output_loss import divergence
from depthcomp.errors import CaptureError
from depthcomp.results.loading import load_result
from depthcomp.training.config import FinetuneConfig
from fx_passes import capture
from fx_passes.graph_part import find_part


class Features(nn.Module):
    """Two feature maps in a dict, as backbones of segmentation networks return them."""

    def __init__(self):
        super().__init__()
        sizes = [(4, 6, 3), (6, 24, 1), (24, 6, 1), (6, 6, 3)]
        layers = [layer for i, o, k in sizes for layer in (nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU())]
        self.out_channels = (6, 6)
        self.low, self.high = nn.Sequential(*layers[:4]), nn.Sequential(*layers[4:])

    def forward(self, x):
        low = self.low(x)
        return {"low": low, "high": self.high(low)}


class Classifier(nn.Module):
    """A stem, features, and a head that also reads the stem."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.features, self.head = Features(), nn.Sequential(nn.Conv2d(34, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 1))
        self.head[2].weight.data *= 30

    def forward(self, x):
        x = self.stem(x)
        found = self.features(x)
        return self.head(torch.cat([x, found["low"], found["high"]], 1)).mean((2, 3))


def images(count=24, seed=1):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def whole():
    return Classifier().eval()


@pytest.fixture(scope="module")
def compressed(whole, arithmetic_backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    result = compress_depth(
        whole,
        "85%",
        module="features",
        data=images().split(8),
        backend=arithmetic_backend(),
        output_dir=folder,
        exclude="*.high.2",
    )
    return result, folder


def test_the_result_is_of_the_part(whole, compressed):
    result, _ = compressed
    inner = whole.stem(images())
    found, original = result.model(inner), whole.features(inner)
    assert found.keys() == original.keys()
    assert [tuple(each.shape) for each in found.values()] == [tuple(each.shape) for each in original.values()]
    assert result.example_inputs[0].shape == (1, 4, 12, 12)
    assert result.measured_ms <= 0.85 * result.original_ms
    assert result.original_depth == 4
    assert all(record.modules.startswith("features.") for record in result.spans)
    assert any(refusal.why == "you excluded features.high.2" for refusal in result.refusals)
    assert all(refusal.modules.startswith("features") for refusal in result.refusals)


def test_the_outputs_of_the_whole_judge(whole, compressed):
    result, _ = compressed
    assert result.judged_by == "divergence of the scores of 5 classes, in nats, of the whole Classifier"
    assert result.part.judged_alone == ""
    with torch.no_grad():
        found = divergence(whole(images()), result.whole(images()))
    assert result.loss / 10 < found < result.loss


def test_the_whole_holds_the_part_and_nothing_else_changed(whole, compressed):
    result, _ = compressed
    inner = whole.stem(images())
    assert torch.equal(result.whole.features(inner)["high"], result.model(inner)["high"])
    state = result.whole.state_dict()
    assert all(
        torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items() if "features" not in name
    )


def test_latencies_of_both_are_told(whole, compressed, arithmetic_backend):
    result, folder = compressed
    part, backend = result.part, arithmetic_backend()
    assert part.module == "features"
    assert part.unmeasured == ""
    assert part.original_timing.median_ms > result.original_ms
    saved = part.original_timing.median_ms - part.measured_timing.median_ms
    assert saved == pytest.approx(result.original_ms - result.measured_ms, abs=0.01)
    assert load_result(folder).part == part
    assert json.loads((folder / "result.json").read_text())["part"]["module"] == "features"
    assert "The whole network around features" in (folder / "report.html").read_text()
    assert backend.live == 0


def test_a_saved_part_goes_back_into_its_whole(whole, compressed):
    result, folder = compressed
    again = Classifier().eval()
    again.set_submodule("features", depthcomp.load(folder))
    assert torch.equal(again(images()), result.whole(images()))


def test_a_part_is_fine_tuned_on_what_the_whole_feeds_it(whole, arithmetic_backend):
    result = compress_depth(
        whole, "80%", module="features", data=images().split(8), backend=arithmetic_backend(),
        finetune=FinetuneConfig(epochs=1, learning_rate=1e-4),
    )  # fmt: skip
    assert result.finetuned.epochs == 1
    assert torch.equal(result.whole(images()), _with(whole, result.model)(images()))


def _with(whole, part):
    again = Classifier().eval()
    again.load_state_dict(whole.state_dict())
    again.features = part
    return again


def test_a_part_without_one_input_of_its_own_is_judged_alone(arithmetic_backend):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = Branched()

        def forward(self, x):
            return self.body(x) + self.body(x * 2)

    result = compress_depth(
        Twice().eval(),
        "85%",
        module="body",
        data=images().split(8),
        backend=arithmetic_backend(),
        importance="curvature",
    )
    reason = "body computes other operators in the whole than alone, or runs more than once"
    assert result.part.judged_alone == reason
    assert result.judged_by == "divergence of the scores of 7 classes, in nats, of body alone"
    assert result.part.measured_timing.median_ms < result.part.original_timing.median_ms


def test_the_part_of_a_graph_computes_what_the_module_does(whole):
    inner = whole.stem(images())
    gm = capture(whole, images())
    part = find_part(gm, "features", capture(whole.features, inner))
    found, wanted = part.of(gm)(inner), whole.features(inner)
    assert all(torch.equal(found[name], wanted[name]) for name in ("low", "high"))
    assert part.of(gm).out_channels == (6, 6)
    with pytest.raises(CaptureError, match="stem computes other operators in the whole than alone"):
        find_part(gm, "stem", capture(whole.features.high, whole.features.low(inner)))


@pytest.mark.parametrize("module", ["features.*", ("features", "head")])
def test_several_parts_are_refused(whole, module):
    with pytest.raises(CaptureError, match=r"must be the path of one module; compress several one after the other"):
        compress_depth(whole, "80%", module=module, data=images().split(8))
