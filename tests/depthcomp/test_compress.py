"""The one call, end to end, on a machine whose latencies are arithmetic."""

import copy
import json
import time
from dataclasses import replace
from typing import get_args

import onnxruntime
import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

import depthcomp
from depthcomp import Budget, CompressionResult, compress_depth
from depthcomp.data.calibration import cross_validated, separate
from depthcomp.data.output_loss import divergence
from depthcomp.errors import BudgetInfeasibleError, TableMismatchError
from depthcomp.export.onnx_model import to_onnx
from depthcomp.fitting.refit import Kept, Refitter
from depthcomp.latency.pricing import Pricing
from fx_passes import CapturedNetwork, Plan, capture, fold_batch_norms, merge
from fx_passes.depth import convolution_depth
from latency_tables import Calibration, LatencyTable

pytestmark = pytest.mark.whole


def whole_networks(backend, macs_of):
    """Return the whole networks that the backend built; isolated operators have one convolution."""
    return [model for model in backend.built if len(macs_of(model)) > 1]


def run_onnx(model, batch):
    """Run a model that takes one image on each image of a batch."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    return torch.cat([torch.from_numpy(session.run(None, {name: image[None].numpy()})[0]) for image in batch])


def relative_error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


class Run:
    """One compression, and everything that it was given."""

    def __init__(self, backend, folder):
        self.backend = backend
        self.folder = folder
        self.model = tiny_net()
        self.model[3].train()  # one part in training mode: the flags must survive too
        self.model[3].requires_grad_(False)
        self.state = copy.deepcopy(self.model.state_dict())
        self.flags = [module.training for module in self.model.modules()]
        self.grads = [parameter.requires_grad for parameter in self.model.parameters()]
        self.stages, self.told = [], {}
        start = time.perf_counter()
        self.result = compress_depth(
            self.model, "75%", data=[(images(), torch.zeros(32))], backend=backend, table=folder / "table.json",
            output_dir=folder / "out", progress=self.tell,
        )  # fmt: skip
        self.seconds = time.perf_counter() - start
        self.saving = self.told["saving", 1] - self.told["saving", 0]

    def tell(self, *stage):
        self.stages.append(stage)
        self.told[stage[0], stage[1]] = time.perf_counter()


@pytest.fixture(scope="module")
def run(arithmetic_backend, tmp_path_factory):
    return Run(arithmetic_backend(), tmp_path_factory.mktemp("run"))


def test_the_budget_is_met_when_measured(run, macs_of):
    result = run.result
    assert isinstance(result, CompressionResult)
    assert result.measured_ms <= result.budget_ms < result.original_ms
    assert result.budget == Budget(75, "%")
    assert result.budget_ms == pytest.approx(0.75 * result.original_ms)
    networks = [run.backend.ms(model) for model in whole_networks(run.backend, macs_of)]
    assert result.original_ms == pytest.approx(networks[0], rel=1e-9)
    assert any(result.measured_ms == pytest.approx(ms, rel=1e-9) for ms in networks)
    assert result.speedup == pytest.approx(result.original_ms / result.measured_ms)


def test_the_prediction_is_close_where_latencies_add_up(run):
    assert run.result.predicted_ms == pytest.approx(run.result.measured_ms, rel=0.05)


def test_the_returned_model_is_the_one_that_was_measured(run):
    again = run.backend.ms(to_onnx(run.result.model, (EXAMPLE,)))
    assert again == pytest.approx(run.result.measured_ms, rel=1e-9)


def test_the_returned_model_computes_what_the_measured_network_computes(run, macs_of):
    batch, took = images(8, seed=7), pytest.approx(run.result.measured_ms, rel=1e-9)
    original, *others = whole_networks(run.backend, macs_of)
    with torch.no_grad():
        wanted = run.result.model(batch)
    errors = [relative_error(run_onnx(model, batch), wanted) for model in others if run.backend.ms(model) == took]
    assert min(errors) < 1e-5
    assert relative_error(run_onnx(original, batch), wanted) > 1e-2


def test_merging_the_trainable_form_gives_the_returned_model(run):
    again, batch = merge(run.result.trainable, run.result.plan), images(8, seed=8)
    assert again.code == run.result.model.code
    assert again.state_dict().keys() == run.result.model.state_dict().keys()
    assert all(torch.equal(value, run.result.model.state_dict()[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(batch), run.result.model(batch))


def test_the_input_model_is_not_changed(run):
    assert run.model.state_dict().keys() == run.state.keys()
    assert all(torch.equal(value, run.state[name]) for name, value in run.model.state_dict().items())
    assert [module.training for module in run.model.modules()] == run.flags
    assert [parameter.requires_grad for parameter in run.model.parameters()] == run.grads


def test_merged_and_trainable_are_one_function(run):
    batch = images(seed=5)
    run.result.trainable.eval()
    with torch.no_grad():
        merged, trainable, original = run.result.model(batch), run.result.trainable(batch), tiny_net()(batch)
    assert torch.allclose(merged, trainable, atol=1e-4 * float(trainable.abs().max()))
    assert merged.shape == original.shape
    assert not torch.allclose(merged, original, atol=1e-3)
    assert not any(module.training for module in run.result.model.modules())


def test_the_network_is_shallower(run):
    result = run.result
    assert result.depth == convolution_depth(result.model) < result.original_depth
    assert result.original_depth == 1 + 3 + 2 + 1


def test_the_time_of_the_run_was_foretold(run):
    """Within a wide margin: this network's run takes less time than the noise of a busy machine."""
    effort = run.result.effort
    assert 0 < effort.foretold_seconds < 600
    assert effort.plans_verified <= effort.plans_compared
    assert 0 < effort.true_losses <= effort.scored <= effort.choices


def are_modules(words):
    """Say of each of these words whether it is the path of a module of the model, or an operation in one."""
    paths = dict(tiny_net().named_modules())
    return [word.removeprefix("add in ") in paths for word in words]


def test_the_spans_are_those_of_the_plan(run):
    result = run.result
    assert tuple(record.choice for record in result.spans) == result.plan.choices
    assert len(result.plan) > 0
    for record in result.spans:
        assert 0 <= record.new_ms < record.kept_ms
        assert record.loss >= 0
        assert record.convolutions >= 1
        assert all(are_modules(record.modules.split(" to ")))


def test_the_frontier_is_one(run):
    frontier = run.result.frontier
    times, losses = [p.predicted_ms for p in frontier], [p.loss for p in frontier]
    assert times == sorted(times)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(frontier) > 2  # two times may differ by rounding alone
    assert len(frontier[-1].plan) == 0
    assert frontier[-1].loss == 0.0
    assert run.result.plan in [point.plan for point in frontier]


def test_refusals_are_sentences(run):
    pooled = [refusal for refusal in run.result.refusals if "MaxPool2d" in refusal.reason]
    assert pooled
    assert all(refusal.at == "5" and refusal.reason == f"5: {refusal.why}" for refusal in pooled)
    assert all(are_modules(word for refusal in run.result.refusals for word in refusal.modules.split(" to ")))
    assert all(refusal.reason and refusal.entry and refusal.exit for refusal in run.result.refusals)


def test_a_result_prints_in_one_line(run):
    text = repr(run.result)
    assert f"{run.result.original_ms:.3f} ms -> {run.result.measured_ms:.3f} ms measured" in text
    assert len(text) < 200


def test_other_fields(run):
    result = run.result
    assert result.warnings == ()
    assert result.environment == result.table.environment == run.backend.environment()
    assert result.seed == 0
    assert result.example_inputs[0].shape == EXAMPLE.shape


def test_the_loss_is_that_of_the_returned_model_on_images_never_seen(run):
    batch = images(128, seed=9)
    with torch.no_grad():
        true_loss = divergence(tiny_net()(batch), run.result.model(batch))
    assert 0.4 < run.result.loss / true_loss < 2.5


def folded_net():
    network = capture(tiny_net(), EXAMPLE)
    fold_batch_norms(network)
    return CapturedNetwork(network)


def refit_of(run):
    """Return a refitter, and which kept layers the plan's refit includes.

    All behind its changes where a choice profits from refits and both the first fold and all folds favour it.
    """
    calibration, profiting, plan = cross_validated(images(), 0), run.result.importance.profiting, run.result.plan
    refitter = Refitter(folded_net(), calibration, seed=0, profiting=profiting)
    losses = [[refitter.loss(plan, kept=kept, folds=folds) for kept in ("all", "nearest")] for folds in (1, None)]
    farther = not profiting.isdisjoint(plan) and all(every < nearest for every, nearest in losses)
    return refitter, "all" if farther else "nearest"


def test_every_image_judges_where_there_are_no_others(run):
    refitter, kept = refit_of(run)
    assert run.result.loss == pytest.approx(refitter.loss(run.result.plan, kept=kept), rel=1e-3)


def test_the_returned_model_is_fitted_to_every_image(run):
    (refitter, kept), plan = refit_of(run), run.result.plan
    refitted = refitter.carry_out(plan, kept=kept).linearized
    batch = images(8, seed=7)
    with torch.no_grad():
        assert relative_error(run.result.model(batch), merge(refitted, run.result.plan)(batch)) < 1e-3


def test_the_seconds_of_the_stages_add_up_to_the_whole_run_but_for_saving(run):
    stages = ["capturing", "measuring the original", "measuring operators", "scoring choices", "searching"]
    assert list(run.result.seconds) == stages
    assert 0.9 * run.seconds < sum(run.result.seconds.values()) + run.saving < run.seconds


def test_progress_names_each_stage_and_ends_it(run):
    for stage in ("capturing", "measuring operators", "measuring the original", "scoring choices", "searching"):
        assert (stage, 0, 1) in run.stages
        assert (stage, 1, 1) in run.stages
    assert all(0 <= done <= total > 0 for _, done, total in run.stages)


def test_all_runners_are_closed(run):
    assert run.backend.live == 0


def test_the_folder_has_everything(run):
    names = {path.name for path in (run.folder / "out").iterdir()}
    assert names >= {
        "plan.json", "model.json", "model.safetensors", "model.onnx", "result.json", "latency_table.json",
        "report.html", "frontier.svg",
    }  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp") or name.startswith("latency_journal")]
    assert Plan.from_json((run.folder / "out" / "plan.json").read_text()) == run.result.plan
    numbers = json.loads((run.folder / "out" / "result.json").read_text())
    assert numbers["measured"]["ms"] == run.result.measured_ms
    exits = [choice.exit for choice in run.result.plan.choices]
    assert [span["choice"]["exit"] for span in numbers["spans"]] == exits
    assert [span["modules"] for span in numbers["spans"]] == [record.modules for record in run.result.spans]


def test_the_folder_loads_to_the_same_bits(run):
    loaded, batch = depthcomp.load(run.folder / "out"), images(seed=6)
    with torch.no_grad():
        assert torch.equal(loaded(batch), run.result.model(batch))


def test_the_table_was_written(run):
    table = LatencyTable.load(run.folder / "table.json")
    assert table.entries == run.result.table.entries


def test_the_table_and_its_file_have_the_line_to_whole_networks(run, macs_of):
    line = run.result.table.calibration
    assert LatencyTable.load(run.folder / "table.json").calibration == line
    assert LatencyTable.load(run.folder / "out" / "latency_table.json").calibration == line
    assert line.n == 1 + len(whole_networks(run.backend, macs_of)[1:]) // 2  # the original is built beside each other


def test_the_line_is_in_ms_of_sums_and_of_whole_networks(run):
    line, result = run.result.table.calibration, run.result
    total_ms = line.invert(result.frontier[-1].predicted_ms)  # nothing is rewritten
    pricing = Pricing(folded_net())
    assert total_ms == pytest.approx(pricing.kept_ms(pricing.kept, result.table.ms))
    assert line.predict(total_ms) == pytest.approx(result.original_ms, rel=0.05)
    saved_ms = sum(record.kept_ms - record.new_ms for record in result.spans)
    assert line.predict(total_ms - saved_ms) == pytest.approx(result.measured_ms, rel=0.05)


def test_the_residual_stands_beside_the_prediction(run):
    result = run.result
    assert result.residual == pytest.approx(result.table.calibration.residual_ms / result.original_ms)
    assert 0 <= result.residual < 0.05
    numbers = json.loads((run.folder / "out" / "result.json").read_text())
    assert numbers["residual"] == result.residual
    assert numbers["calibration"]["n"] == result.table.calibration.n


def test_the_line_of_another_network_predicts_nothing_and_gives_way(run, arithmetic_backend, tmp_path):
    foreign = Calibration(intercept_ms=9.0, slope=7.0, residual_ms=5.0, n=3)
    replace(run.result.table, calibration=foreign).save(tmp_path / "table.json")
    result = compress_depth(
        tiny_net(), "75%", data=[images()], backend=arithmetic_backend(), table=tmp_path / "table.json"
    )
    assert result.predicted_ms == pytest.approx(run.result.predicted_ms, rel=1e-6)
    assert result.table.calibration != foreign
    assert LatencyTable.load(tmp_path / "table.json").calibration == result.table.calibration


@pytest.fixture(scope="module")
def second(run, arithmetic_backend):
    """The same again, with the table that the first run wrote."""
    backend = arithmetic_backend()
    result = compress_depth(
        tiny_net(), "75%", data=iter([images()]), backend=backend, table=str(run.folder / "table.json")
    )
    return backend, result


def test_a_second_run_measures_no_operator_again(second, macs_of):
    backend, _ = second
    assert all(len(macs_of(model)) > 1 for model in backend.built)


def test_the_same_seed_gives_the_same_result(run, second):
    _, result = second
    assert result.plan == run.result.plan
    assert result.measured_ms == run.result.measured_ms
    assert result.loss == pytest.approx(run.result.loss, rel=1e-6)
    with torch.no_grad():
        assert torch.allclose(result.model(images()), run.result.model(images()), atol=1e-6)


def test_without_data_a_warning_is_given(arithmetic_backend):
    with pytest.warns(UserWarning, match="without data the importance is estimated on") as caught:
        result = compress_depth(tiny_net(), "1.2x", example_inputs=EXAMPLE, backend=arithmetic_backend())
    assert [str(warning.message) for warning in caught] == list(result.warnings)
    assert caught[0].filename == __file__  # the warning points at the user's line
    assert result.measured_ms <= result.budget_ms


def test_validation_data_judge_and_data_do_not(run, arithmetic_backend):
    table, judging = run.result.table, images(12, seed=2)
    result = compress_depth(
        tiny_net(), "75%", data=[images()], val_data=iter(judging), backend=arithmetic_backend(), table=table, seed=3
    )
    refitter = Refitter(folded_net(), separate(images(), judging, 3), seed=3)
    losses = [refitter.loss(result.plan, kept=kept) for kept in get_args(Kept)]
    assert result.loss == pytest.approx(min(losses), rel=1e-3)
    assert result.warnings == ()


def test_one_image_judges_what_is_fitted_to_it_and_that_is_said(run, arithmetic_backend):
    with pytest.warns(UserWarning, match="the loss is estimated on the one image that was also fitted to") as caught:
        result = compress_depth(tiny_net(), "75%", data=images(1), backend=arithmetic_backend(), table=run.result.table)
    assert [str(warning.message) for warning in caught] == list(result.warnings)
    with torch.no_grad():
        on_it = divergence(tiny_net()(images(1)), result.model(images(1)))
    assert result.loss == pytest.approx(on_it, rel=1e-3)


@pytest.mark.parametrize("trap", ["dearer", "cliff"])
def test_a_prediction_that_is_too_low_is_corrected(arithmetic_backend, trap):
    """Merged networks take longer than their operators promise: the sum alone would miss the budget."""
    honest = arithmetic_backend().ms
    original = honest(onnx_of(capture(tiny_net(), EXAMPLE)))

    def hidden(model, ms):
        if not 0.3 * original < ms < 0.999 * original:
            return ms
        return 1.15 * ms if trap == "dearer" else ms + 0.12 * original * (ms < 0.78 * original)

    backend = arithmetic_backend(hidden=hidden)
    result = compress_depth(tiny_net(), "75%", data=[images()], backend=backend)
    saved = sum(record.kept_ms - record.new_ms for record in result.spans)
    assert result.original_ms == pytest.approx(original)
    assert result.measured_ms <= result.budget_ms
    assert result.measured_ms > 1.05 * (original - saved)  # what the sum promised


def onnx_of(network):
    fold_batch_norms(network)
    return to_onnx(network, (EXAMPLE,))


def test_a_table_of_another_machine_is_refused(run, arithmetic_backend, macs_of):
    backend = arithmetic_backend(device="slide rule")
    with pytest.raises(TableMismatchError, match="device 'abacus', but here device is 'slide rule'"):
        compress_depth(tiny_net(), "75%", data=[images(8)], backend=backend, table=run.result.table)
    assert backend.built == []


class Interrupted:
    """Lets a number of models pass, and kills the run at the next: the first chunk of operators is done then."""

    def __init__(self, number):
        self.left = number

    def __call__(self, model, ms):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return ms


def test_a_run_that_was_killed_elsewhere_leaves_its_journal_aside(arithmetic_backend, tmp_path):
    elsewhere = arithmetic_backend(device="slide rule", hidden=Interrupted(26))
    with pytest.raises(KeyboardInterrupt):
        compress_depth(tiny_net(), "75%", data=[images(8)], backend=elsewhere, output_dir=tmp_path)
    left = {journal: journal.read_text() for journal in tmp_path.glob("latency*.jsonl")}
    assert left
    result = compress_depth(tiny_net(), "75%", data=[images(8)], backend=arithmetic_backend(), output_dir=tmp_path)
    assert result.environment.device == "abacus"
    assert {journal: journal.read_text() for journal in tmp_path.glob("latency*.jsonl")} == left


class Branched(nn.Module):
    """Parallel branches without activations, in training form."""

    def __init__(self, channels):
        super().__init__()
        self.three, self.one = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x):
        return self.act(self.three(x) + self.one(x) + self.norm(x))


def test_what_can_be_merged_for_free_is_and_counts_against_the_original(arithmetic_backend):
    torch.manual_seed(0)
    net = nn.Sequential(nn.MaxPool2d(1), Branched(3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 16 * 16, 5)).eval()
    backend = arithmetic_backend()
    result = compress_depth(net, "95%", data=images(), backend=backend)
    assert len(result.free_merges) == 1
    assert backend.ms(to_onnx(result.original, result.example_inputs)) == pytest.approx(result.original_ms)
    assert result.plan == Plan()
    assert result.measured_ms <= 0.95 * result.original_ms
    with torch.no_grad():
        assert torch.allclose(result.model(images()), net(images()), atol=1e-5)


def test_a_budget_out_of_reach(arithmetic_backend, macs_of):
    backend = arithmetic_backend()
    with pytest.raises(BudgetInfeasibleError, match=r"budget 50x .* the fastest was measured at") as caught:
        compress_depth(tiny_net(), "50x", data=[images(8)], backend=backend)
    assert caught.value.best_ms == pytest.approx(min(map(backend.ms, whole_networks(backend, macs_of))), rel=1e-9)
    assert backend.live == 0
