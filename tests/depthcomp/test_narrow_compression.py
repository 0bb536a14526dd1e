"""Compressions that narrow spans: measured, saved, loaded, exported, fine-tuned, told."""

import json
import math
from dataclasses import replace

import onnxruntime
import pytest
import torch
from tiny_network import with_statistics
from torch import nn

import depthcomp
from depthcomp import FinetuneConfig, compress_depth
from depthcomp.errors import DepthCompError, PlanError
from depthcomp.methods.candidates import _on_steps, operators_of, worthwhile
from depthcomp.preparation import DEFAULT_LIMITS, prepare
from depthcomp.results.loading import load_result
from fx_passes import CapturedNetwork, Narrow, Plan, SpanLimits, capture, fold_batch_norms, linearize
from latency_tables import OperatorSignature, measure

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Block(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x)


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), Block(8, 48), Block(8, 48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return with_statistics(model)


def images(count=48, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def narrowed(arithmetic_backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    result = compress_depth(
        net(), "70%", example_inputs=EXAMPLE, data=[images()], backend=arithmetic_backend(), kinds=["narrow"],
        output_dir=folder,
    )  # fmt: skip
    return folder, result


def test_the_result_is_narrow_and_meets_its_budget(narrowed):
    _, result = narrowed
    assert {choice.kind for choice in result.plan} == {"narrow"}
    assert result.measured_ms <= result.budget_ms
    widths = [module.out_channels for module in result.model.modules() if isinstance(module, nn.Conv2d)]
    assert result.depth == result.original_depth == 7
    assert max(widths) < 48
    assert all(choice.kept and len(choice.kept[0]) == choice.widths[0][1] for choice in result.plan)


def test_the_plan_alone_gives_the_structure_and_the_channels(narrowed):
    folder, result = narrowed
    plan = Plan.from_json((folder / "plan.json").read_text())
    assert [choice.kept for choice in plan] == [choice.kept for choice in result.plan]
    again = linearize(capture(net(), EXAMPLE), plan)
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in result.trainable.state_dict().items()}


def test_a_saved_result_loads_and_runs_elsewhere(narrowed):
    folder, result = narrowed
    loaded, x = depthcomp.load(folder), images(1, seed=3)
    with torch.no_grad():
        wanted = result.model(x)
        assert torch.equal(loaded(x), wanted)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_the_report_tells_the_channels(narrowed):
    folder, result = narrowed
    count, report = result.plan.choices[0].widths[0][1], (folder / "report.html").read_text()
    assert f"narrowed to {count} channels" in report
    assert f"channels: 2.layers.0 48 to {count}, 2.layers.3 48 to {count}" in report
    assert load_result(folder).spans == result.spans
    stored = json.loads((folder / "plan.json").read_text())
    assert {choice["kind"] for choice in stored["choices"]} == {"narrow"}


def test_depth_and_width_join_in_one_plan(arithmetic_backend):
    result = compress_depth(
        net(), "45%", example_inputs=EXAMPLE, data=[images()], backend=arithmetic_backend(),
        kinds=["drop", "fit", "merge", "narrow"],
    )  # fmt: skip
    assert result.measured_ms <= result.budget_ms
    assert len(result.frontier) > 3
    assert {choice.kind for point in result.frontier for choice in point.plan} >= {"narrow", "fit"}


def test_a_narrow_network_is_fine_tuned(arithmetic_backend, tmp_path):
    result = compress_depth(
        net(), "70%", example_inputs=EXAMPLE, data=images().split(8), backend=arithmetic_backend(),
        kinds=["narrow"], finetune=FinetuneConfig(epochs=1, batch_size=8), output_dir=tmp_path / "tuned",
    )  # fmt: skip
    x = images(2, seed=3)
    with torch.no_grad():
        assert torch.equal(depthcomp.load(tmp_path / "tuned")(x), result.model(x))
    depthwise = [module for module in result.model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert min(module.groups for module in depthwise) < 48


def test_the_method_width_only_narrows(arithmetic_backend):
    result = compress_depth(
        net(), "80%", example_inputs=EXAMPLE, data=[images()], backend=arithmetic_backend(), method="width"
    )
    assert {choice.kind for choice in result.plan} == {"narrow"}
    assert result.method == "width"


def test_grail_takes_equal_shares_of_the_channels_by_magnitude(arithmetic_backend):
    result = compress_depth(
        net(), "80%", example_inputs=EXAMPLE, data=[images()], backend=arithmetic_backend(), method="grail"
    )
    widths = [count for choice in result.plan for _, count in choice.widths]
    assert result.measured_ms <= result.budget_ms
    assert len(widths) == 2
    assert max(widths) - min(widths) <= 48 / 8 + 2  # one share, or two that follow each other
    gm = capture(net(), EXAMPLE)
    fold_batch_norms(gm)
    for choice in result.plan:
        block = gm.get_submodule("2.layers" if choice.widths[0][0].startswith("_2") else "3.layers")
        power = sum(block.get_submodule(name).weight.square().sum((1, 2, 3)) for name in ("0", "3"))
        kept = power.argsort(descending=True)[: choice.widths[0][1]]
        assert choice.kept == (tuple(sorted(kept.tolist())),)


def test_widths_that_save_no_more_than_a_wider_one_are_left_out(arithmetic_backend):
    """Of all widths of a step of the latency, only the widest is tried."""
    prepared = prepare(net(), EXAMPLE, [images()], None, 0, limits=replace(DEFAULT_LIMITS, kinds=("narrow",)))
    table = measure(operators_of(prepared), arithmetic_backend())

    def stepped(key):
        """Return a latency that falls with each 16 channels."""
        signature = OperatorSignature.parse(key)
        return 1e-3 * math.ceil(signature.in_channels / 16) * math.ceil(signature.out_channels / 16)

    entries = {key: replace(entry, ms=stepped(key)) for key, entry in table.entries.items()}
    smooth, steps = (worthwhile(prepared, each) for each in (table, replace(table, entries=entries)))
    choices = [candidate.choice for candidate in prepared.candidates[:5]]
    slope = {choice: 1.0 + 0.1 * number for number, choice in enumerate(choices)}
    assert [*_on_steps(choices, slope, 0.15)] == choices[::2]  # small steps add up
    assert {c.choice.widths[0][1] for c in smooth.candidates} == {40, 32, 24, 16, 8}
    assert {c.choice.widths[0][1] for c in steps.candidates} == {32, 16}


def test_layers_whose_channels_stay_are_refused_with_the_reason():
    prepared = prepare(net(), EXAMPLE, [images()], None, 0, limits=replace(DEFAULT_LIMITS, kinds=("narrow",)))
    reasons = {refusal.modules: refusal.why for refusal in prepared.refusals}
    carried = "its channels stay, as a residual sum carries them past the layers that read them"
    assert reasons == {
        "0": carried, "2.layers.6": carried, "3.layers.6": carried,
        "6": "its channels stay, as the network returns them",
    }  # fmt: skip


class Bottleneck(nn.Module):
    """Two inner tensors in a row, and linear layers of each pixel."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.three, self.wide, self.back = nn.Conv2d(32, 16, 1), nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.three(torch.relu(self.two(torch.relu(self.one(x))))))
        y = x.permute(0, 2, 3, 1)
        y = y + self.back(torch.relu(self.wide(y)))
        return self.head(y.mean((1, 2)))


@pytest.mark.parametrize("method", ["depthcomp", "width", "grail"])
def test_rows_and_linear_layers_of_pixels_are_narrowed(method, arithmetic_backend, tmp_path):
    torch.manual_seed(0)
    model, x = Bottleneck().eval(), images(3, seed=4)
    result = compress_depth(
        model, "60%", example_inputs=EXAMPLE, data=[images()], backend=arithmetic_backend(), method=method,
        output_dir=tmp_path,
    )  # fmt: skip
    assert result.measured_ms <= result.budget_ms
    if method != "depthcomp":
        assert result.model.get_submodule("wide").out_features < 64
        assert method != "grail" or max(len(choice.widths) for choice in result.plan) == 2
    with torch.no_grad():
        wanted = result.model(x)
        assert torch.equal(depthcomp.load(tmp_path)(x), wanted)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted[:1], atol=1e-5)


@pytest.mark.parametrize("kinds", [["prune"], "narrow", [], ["narrow", "prune"]])
def test_unknown_kinds_are_refused_in_a_sentence(kinds):
    with pytest.raises(DepthCompError, match=r"kinds \(=.*must be a list of at least one of .*narrow"):
        compress_depth(net(), "80%", example_inputs=EXAMPLE, kinds=kinds)


def test_a_narrow_plan_of_another_network_is_refused(narrowed):
    _, result = narrowed
    other = capture(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), EXAMPLE)
    with pytest.raises(PlanError, match="made for this network"):
        linearize(other, result.plan)


def test_widths_are_offered_beside_the_other_kinds():
    gm = capture(net(), EXAMPLE)
    fold_batch_norms(gm)
    every = SpanLimits(kinds=("fit", "merge", "drop", "narrow"))
    choices = [choice for span in CapturedNetwork(gm).spans(every) for choice in span.choices]
    assert sum(isinstance(choice, Narrow) for choice in choices) >= 10
