"""Compression with fine-tuning in one call: classes, and a segmentation network by a loss of its own."""

import json
import shutil
import sys
from dataclasses import replace

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tiny_network import images, tiny_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import depthcomp
from depthcomp import FinetuneConfig, compress_depth
from depthcomp.commands.finetune import TuningRequest, run
from depthcomp.errors import DataError, DepthCompError, TrainingError
from depthcomp.fitting.execution import record
from depthcomp.preparation import DEFAULT_LIMITS
from depthcomp.results.loading import load_result
from depthcomp.results.stored_numbers import result_json
from depthcomp.runs.tuned_result import CHECKPOINTS
from depthcomp.training.finetune import finetune
from depthcomp.training.plan import finetune_plan
from fx_passes import Plan, capture, enumerate_spans, fold_batch_norms, linearize, merge

pytestmark = pytest.mark.whole


def data(count=48):
    x = images(count)
    with torch.no_grad():
        found = TensorDataset(x, tiny_net()(x).argmax(1))
    return DataLoader(found, 16, shuffle=True, generator=torch.Generator().manual_seed(2))


def report(stage, done, total):
    if stage == "fine-tuning":
        report.calls.append((done, total))


@pytest.fixture(scope="module")
def tuned(arithmetic_backend, tmp_path_factory):
    folder, report.calls = tmp_path_factory.mktemp("tuned"), []
    result = compress_depth(
        tiny_net(), "50%", data=data(), backend=arithmetic_backend(), output_dir=folder, progress=report,
        finetune=FinetuneConfig(epochs=4, learning_rate=3e-3),
    )  # fmt: skip
    return result, folder


def test_the_result_is_the_tuned_network_measured_anew(tuned, arithmetic_backend):
    result, _ = tuned
    record = result.finetuned
    assert record.best != "untrained"
    assert record.loss_after < record.loss_before
    assert result.measured_ms <= result.budget_ms
    again, x = merge(result.trainable, result.plan), images(8, 5)
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
        assert torch.allclose(result.trainable.eval()(x), result.model(x), atol=1e-4)
    assert report.calls[-1][0] == report.calls[-1][1]


def test_features_bring_tensors_inside_closer():
    """By the features alone, the tensor at the end of a rewritten span comes closer to the original's."""
    config = FinetuneConfig(epochs=4, labels=0.0, distillation=0.0, features=1.0, learning_rate=3e-3)
    original = capture(tiny_net(), images(4))
    fold_batch_norms(original)
    longest = next(choice for span in enumerate_spans(original, DEFAULT_LIMITS) for choice in span.choices)
    plan = Plan.of([longest])
    raw = linearize(original, plan)
    found = finetune_plan(raw, plan, original, data(), None, config)
    assert found.record.loss_after < 0.9 * found.record.loss_before
    x = images(16, 5)

    def error(network):
        wanted, now = (record(gm, x, {longest.exit})[longest.exit] for gm in (original, network.eval()))
        return float((wanted - now).square().mean())

    assert error(found.trainable) < error(raw)
    with pytest.raises(TrainingError, match="a Sequential lacks 'nowhere'; set features=0"):
        finetune(tiny_net(), tiny_net(), data(), None, config, features=["nowhere"])


def test_the_folder_holds_it(tuned):
    result, folder = tuned
    x = images(8, 5)
    with torch.no_grad():
        assert torch.equal(depthcomp.load(folder)(x), result.model(x))
    found = json.loads((folder / "result.json").read_text())["finetuned"]
    assert found["loss_after"] == result.finetuned.loss_after
    assert (folder / CHECKPOINTS / "log.jsonl").exists()
    assert "fine-tun" in (folder / "report.html").read_text().lower()


@pytest.fixture(scope="module")
def untuned(arithmetic_backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untuned") / "out"
    return compress_depth(tiny_net(), "50%", data=data(), backend=arithmetic_backend(), output_dir=folder), folder


@pytest.fixture
def abacus(arithmetic_backend, monkeypatch):
    """A machine on which the backend that the folders name is one of depthcomp's own."""
    backend = arithmetic_backend()
    monkeypatch.setattr("depthcomp.commands.finetune.BACKEND_NAMES", ("arithmetic",))
    monkeypatch.setattr("depthcomp.commands.finetune.create_backend", lambda name, threads: backend)
    return backend


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """A function from a folder to a request to fine-tune a copy of it."""
    (tmp_path / "labelled_images.py").write_text("from test_tuned_compression import data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def request(folder, **options):
        shutil.copytree(folder, tmp_path / "copy")
        config = FinetuneConfig(epochs=3, learning_rate=3e-3, **options)
        return TuningRequest(directory=tmp_path / "copy", data="labelled_images:data", val_data=None, config=config)

    yield request
    sys.modules.pop("labelled_images", None)


def require_one_network(folder):
    """Every file of the folder must tell of the same network."""
    found, x = load_result(folder), images(8, 5)
    with torch.no_grad():
        wanted = depthcomp.load(folder)(x)
        assert torch.equal(merge(found.trainable, found.plan)(x), wanted)
        assert torch.allclose(found.trainable(x), wanted, atol=1e-4)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
    assert torch.allclose(torch.from_numpy(exported), wanted[:1], atol=1e-4)
    assert Plan.from_json((folder / "plan.json").read_text()) == found.plan
    page, record = (folder / "report.html").read_text(), found.finetuned
    assert f"from loss {record.loss_before:.4g} to {record.loss_after:.4g}" in page
    assert f"{found.measured_ms:.3f} ms" in page
    return found


def norms_of(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_the_command_trains_what_a_folder_holds_and_measures_it_again(untuned, request_for, abacus):
    result, folder = untuned
    request = request_for(folder)
    abacus.hidden = lambda model, ms: 0.9 * ms  # the machine is faster today
    found = run(request)
    stored = require_one_network(request.directory)
    assert result_json(stored) == result_json(found)
    assert found.finetuned.best != "untrained"
    assert found.tuned_before == ()
    assert found.original_ms == pytest.approx(0.9 * result.original_ms)
    assert found.measured_ms == pytest.approx(0.9 * result.measured_ms, rel=0.01)
    assert found.budget_ms == pytest.approx(0.5 * found.original_ms)
    assert found.predicted_ms == pytest.approx(0.9 * result.predicted_ms)
    assert found.seconds.keys() >= {"capturing", "fine-tuning", "measuring the fine-tuned network"}
    fits = sum(choice.kind == "fit" for choice in result.plan)
    assert norms_of(found.trainable) == norms_of(result.trainable) + fits > norms_of(result.trainable)
    assert abacus.live == 0


def test_images_that_do_not_fit_are_said(untuned, request_for):
    result, _ = untuned
    grey = [(torch.randn(8, 1, 9, 9), torch.zeros(8).long())] * 2
    with pytest.raises(DataError, match=r"cannot run on images \(8, 1, 9, 9\) of torch.float32 .*channels"):
        finetune_plan(result.trainable, result.plan, None, grey, grey)


@pytest.mark.parametrize("by", ["the call", "the command"])
def test_a_second_tuning_goes_on_from_the_first(tuned, untuned, request_for, abacus, by):
    request = request_for(tuned[1] if by == "the call" else untuned[1])
    first = tuned[0] if by == "the call" else run(request)
    found = run(request)
    require_one_network(request.directory)
    assert found.tuned_before == (first.finetuned,)
    before, after = first.finetuned, found.finetuned
    assert after.loss_before == pytest.approx(before.loss_after, rel=1e-4)
    assert after.best != "untrained"
    assert norms_of(found.trainable) == norms_of(first.trainable)
    third = run(request)
    assert third.tuned_before == (before, after)
    assert third.seconds["fine-tuning"] > found.seconds["fine-tuning"]


def test_a_command_that_was_killed_while_it_saved_ends_as_if_it_had_not_been(untuned, request_for, abacus, monkeypatch):
    request = request_for(untuned[1])

    def break_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("depthcomp.results.report.write_report", break_off)
        with pytest.raises(KeyboardInterrupt):
            run(request)
    assert load_result(request.directory).finetuned is not None  # the numbers stand there before the report
    with pytest.warns(UserWarning, match="holds this training; it is finished and does not run again"):
        found = run(request)
    require_one_network(request.directory)
    assert found.tuned_before == ()
    log = (request.directory / CHECKPOINTS / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "epoch" for line in log) == 3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder, backend: setattr(backend, "device", "slide rule"), "measured with device 'abacus', but here"),
        (
            lambda folder, backend: shutil.rmtree(folder / "original"),
            "the folder has no original to compare the network with",
        ),
    ],
)
def test_latencies_that_cannot_be_measured_again_stay_and_that_is_said(untuned, request_for, abacus, spoil, reason):
    result, folder = untuned
    request = request_for(folder, distillation=0.0)
    spoil(request.directory, abacus)
    with pytest.warns(UserWarning, match=f"measured before fine-tuning and not again: .*{reason}"):
        found = run(request)
    stored = require_one_network(request.directory)
    assert stored.measured_timing == result.measured_timing
    assert [reason in warning for warning in stored.warnings] == [True]
    assert found.environment == result.environment
    assert abacus.built == []


def test_a_backend_of_the_users_own_is_not_guessed(untuned, request_for):
    with pytest.warns(UserWarning, match="the backend 'arithmetic' is not one of depthcomp"):
        run(request_for(untuned[1]))


def test_of_several_processes_the_first_measures_and_writes(untuned, request_for, abacus, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    request, told = request_for(untuned[1]), []
    before = (request.directory / "result.json").read_bytes()
    assert run(request, lambda *call: told.append(call)) is None
    assert (request.directory / "result.json").read_bytes() == before
    assert abacus.built == told == []


def test_elsewhere_the_tuned_network_stands_complete_and_the_folder_is_left(untuned, request_for, abacus, tmp_path):
    request = replace(request_for(untuned[1]), out=tmp_path / "elsewhere")
    before = (request.directory / "model.safetensors").read_bytes()
    run(request)
    require_one_network(tmp_path / "elsewhere")
    assert (request.directory / "model.safetensors").read_bytes() == before
    assert load_result(request.directory).finetuned is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": None}, DataError, "finetune needs data to train on"),
        ({"data": iter([])}, DataError, "which can be read once"),
        (
            {"data": [(images(8), torch.full((8,), 7))] * 3},
            DataError,
            "labels run from 7 to 7, but the network has 5 classes",
        ),
        ({"data": [images(8)] * 3, "finetune": FinetuneConfig(distillation=0.0)}, TrainingError, "nothing to train by"),
        ({"data": [images(8)], "finetune": 3}, DepthCompError, "must be a FinetuneConfig"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(options, error, message, arithmetic_backend):
    class Untouchable(arithmetic_backend):
        def build(self, onnx_model):
            raise AssertionError("the backend was asked to measure")

    with pytest.raises(error, match=message):
        compress_depth(tiny_net(), "50%", backend=Untouchable(), **{"finetune": FinetuneConfig()} | options)


def test_a_training_that_fails_leaves_the_compression_in_its_error(arithmetic_backend):
    calls = 0

    def loss(student, teacher, batch):
        nonlocal calls
        calls += student.training
        return F.cross_entropy(student(batch[0]), batch[1]) * (float("nan") if calls > 3 else 1)

    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        compress_depth(
            tiny_net(), "50%", data=data(), backend=arithmetic_backend(), finetune=FinetuneConfig(epochs=2, loss=loss)
        )
    result = caught.value.result
    assert caught.value.__notes__ == ["the `result` of this error is the compressed network"]
    assert isinstance(result, depthcomp.CompressionResult)
    assert result.finetuned is None
    assert result.measured_ms <= result.budget_ms


def test_a_failure_after_the_training_leaves_what_was_trained_in_its_error(compressing, tuned):
    def gone(stage, done, total):
        if stage == "measuring the fine-tuned network":
            raise RuntimeError("the machine is gone")

    with pytest.raises(TrainingError, match="the machine is gone") as caught:
        compressing(None, progress=gone)
    assert caught.value.__notes__ == [
        "the `result` of this error is the fine-tuned network with its latencies from before"
    ]
    x = images(8, 5)
    with torch.no_grad():
        assert torch.equal(caught.value.result.model(x), tuned[0].model(x))


def test_a_tuned_network_that_misses_the_budget_is_told_to_the_caller(compressing, arithmetic_backend):
    backend = arithmetic_backend()

    def busier(stage, done, total):
        if stage == "measuring the fine-tuned network":
            backend.hidden = lambda model, ms: ms + 1

    with pytest.warns(UserWarning, match="measured 3 times above the budget, which its untrained form met") as caught:
        result = compressing(None, progress=busier, backend=backend)[0]
    assert [warning.filename for warning in caught] == [__file__]
    assert result.measured_ms > result.budget_ms
    assert str(caught[0].message) in result.warnings


def test_the_seconds_are_those_that_were_saved(tuned, untuned):
    for result, folder in (tuned, untuned):
        assert load_result(folder).seconds == result.seconds


@pytest.fixture(scope="module")
def compressing(arithmetic_backend):
    """A function that compresses and tunes into a folder, and returns the result and the stages on its way."""

    def run(folder, *, budget="50%", stops=None, **options):
        stages = []

        def progress(stage, done, total):
            stages.append(stage)
            if (stage, done) == stops:
                raise KeyboardInterrupt

        config = FinetuneConfig(epochs=4, learning_rate=3e-3, checkpoint_updates=2)
        settings = {"data": data(), "backend": arithmetic_backend(), "finetune": config, "progress": progress}
        result = compress_depth(tiny_net(), budget, output_dir=folder, **settings | options)
        return result, set(stages)

    return run


GOES_ON = "holds this compression with unfinished fine-tuning; the run resumes from there"


@pytest.mark.filterwarnings("ignore:.*it is finished and does not run again:UserWarning")
@pytest.mark.parametrize("stops", [("fine-tuning", 5), *(("saving the fine-tuned network", n) for n in (0, 1))])
def test_a_call_that_was_killed_while_tuning_goes_on_from_its_own_compression(compressing, tuned, tmp_path, stops):
    with pytest.raises(KeyboardInterrupt):
        compressing(tmp_path, stops=stops)
    with pytest.warns(UserWarning, match=GOES_ON):
        found, stages = compressing(tmp_path)
    assert not stages & {"measuring operators", "scoring choices", "searching"}
    wanted = tuned[0]
    x = images(8, 5)
    with torch.no_grad():
        assert torch.equal(found.model(x), wanted.model(x))
    assert (found.plan, found.finetuned.best, found.tuned_before) == (wanted.plan, wanted.finetuned.best, ())
    assert [a["val_loss"] for a in found.finetuned.history] == [a["val_loss"] for a in wanted.finetuned.history]
    assert found.seconds.keys() >= {"searching", "fine-tuning", "measuring the fine-tuned network"}
    require_one_network(tmp_path)
    assert {path.suffix for path in (tmp_path / CHECKPOINTS).iterdir()} == {".json", ".jsonl", ".safetensors"}


@pytest.mark.filterwarnings("ignore:.*it is finished and does not run again:UserWarning")
def test_what_has_ended_does_not_stand_for_the_next_call(compressing, tuned, tmp_path):
    shutil.copytree(tuned[1], tmp_path / "ended")
    _, stages = compressing(tmp_path / "ended")
    assert "searching" in stages


def test_another_tuning_after_one_that_was_killed_at_its_end_begins_before_that(compressing, tuned, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compressing(tmp_path, stops=("saving the fine-tuned network", 1))
    with pytest.warns(UserWarning, match=GOES_ON):
        found, _ = compressing(tmp_path, finetune=FinetuneConfig(epochs=1, learning_rate=3e-3))
    assert (found.finetuned.epochs, found.tuned_before) == (1, ())
    assert found.finetuned.loss_before == tuned[0].finetuned.loss_before


@pytest.mark.filterwarnings("ignore:.*fine-tuning starts anew:UserWarning")
def test_what_is_of_other_settings_or_lost_a_file_is_compressed_anew(compressing, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compressing(tmp_path, stops=("fine-tuning", 5))
    with pytest.raises(KeyboardInterrupt):
        compressing(tmp_path, budget="70%", stops=("searching", 0))
    shutil.rmtree(tmp_path / "trainable")
    with (
        pytest.warns(UserWarning, match="the unfinished run cannot resume, so the model .*: .* trainable"),
        pytest.raises(KeyboardInterrupt),
    ):
        compressing(tmp_path, stops=("searching", 0))
