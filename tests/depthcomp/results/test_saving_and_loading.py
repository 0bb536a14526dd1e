"""A result on disk: all of it is there, and it comes back."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from torch import fx, nn

from depthcomp import load
from depthcomp.budget import Budget
from depthcomp.errors import ArtifactError
from depthcomp.importance.finetuned_importance import KIM23
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.loading import load_result
from depthcomp.results.result import CompressionResult
from depthcomp.results.stored_numbers import result_json
from depthcomp.training.finetune import FinetuneRecord
from fx_passes import Merge, Plan
from latency_tables import Calibration, Environment, LatencyTable, Timing
from latency_tables.tables.entry import Method

pytestmark = pytest.mark.whole


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def small_net():
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()).eval())


def result_of(gm, x):
    environment = Environment.here(backend="fake", backend_version="1", device="none", threads=1)
    method = Method(
        estimator="minimum",
        rounds=3,
        samples_per_round=1,
        sample_ms=1.0,
        warmup_ms=1.0,
        seed=0,
        overhead_ms=0.0,
    )
    plan = Plan((Merge("x", "_1", (3, 3)),))
    return CompressionResult(
        model=gm,
        trainable=gm,
        plan=plan,
        frontier=(FrontierPoint(1.0, 0.5, plan), FrontierPoint(2.0, 0.0, Plan())),
        budget=Budget.parse("70%"),
        budget_ms=1.4,
        original_timing=Timing((2.0, 2.2, 2.4), 9),
        measured_timing=Timing((1.0, 1.1, 1.2), 9),
        predicted_ms=1.05,
        loss=float("inf"),
        rank_correlation=None,
        original_depth=3,
        depth=1,
        spans=(SpanRecord(plan.choices[0], "the whole network", 2, 1.5, 0.5, 0.1),),
        refusals=(
            Refusal("a", "b", "0.one", "because", "0.one.pool"),
            Refusal("b", "c", "0.two to 1", "because"),
            Refusal("a", "c", "0 to 1", "other"),
        ),
        warnings=("careful",),
        environment=environment,
        table=LatencyTable(environment, method, {}, {}, Calibration(0.1, 0.9, 0.05, 3)),
        example_inputs=(x,),
        seed=3,
        seconds={"capture": 0.1},
        free_merges=Plan((Merge("x", "_0", (1, 1)),)),
        importance=ImportanceTable(dict.fromkeys(plan, 0.1), "finetuned", asdict(KIM23), seconds=2.5),
        original=gm,
        finetuned=tuning("epoch 2"),
        method="layermerge",
        tuned_before=(tuning("untrained"),),
    )


def tuning(best):
    history = ({"epoch": 1, "val_loss": 0.5, "averaged_val_loss": None},)
    return FinetuneRecord(best, "loss", 0.5, 0.25, -0.5, -0.25, 2, 6, 1.5, history)


def test_a_saved_result_is_complete_and_loads(tmp_path):
    gm, x = small_net(), images(1, 3, 5, 7)
    result = result_of(gm, x)
    folder = result.save(tmp_path / "a" / "b")
    assert {path.name for path in folder.iterdir()} == {
        "plan.json", "model.json", "model.safetensors", "model.onnx", "latency_table.json", "result.json",
        "report.html", "frontier.svg", "trainable", "original", "importance.json",
    }  # fmt: skip
    assert torch.equal(load(folder)(x), gm(x))
    assert Plan.from_json((folder / "plan.json").read_text()) == result.plan
    assert LatencyTable.load(folder / "latency_table.json") == result.table
    assert json.loads((folder / "result.json").read_text()) == result_json(result)


def test_the_numbers_of_a_result():
    content = result_json(result_of(small_net(), images(1, 3, 5, 7)))
    assert content["budget"] == {"value": 70.0, "unit": "%", "text": "70%"}
    assert content["original"]["ms"] == 2.2
    assert content["measured"] == {
        "ms": 1.1,
        "least_ms": 1.0,
        "spread": pytest.approx(0.135, abs=0.001),
        "n": 9,
        "drifted_rounds": 0,
        "rounds_ms": [1.0, 1.1, 1.2],
    }
    assert content["speedup"] == 2.0
    assert content["loss"] is None
    assert content["frontier"] == [
        {"predicted_ms": 1.0, "loss": 0.5, "plan": [0]},
        {"predicted_ms": 2.0, "loss": 0.0, "plan": []},
    ]
    merge = {"kind": "merge", "entry": "x", "exit": "_1", "kernel": [3, 3], "end": "original", "pruned": []}
    assert content["frontier_choices"] == [merge]
    assert content["refusals"] == [
        {
            "reason": "because",
            "count": 2,
            "spans": [
                {"entry": "a", "exit": "b", "modules": "0.one", "at": "0.one.pool"},
                {"entry": "b", "exit": "c", "modules": "0.two to 1", "at": ""},
            ],
        },
        {
            "reason": "other",
            "count": 1,
            "spans": [{"entry": "a", "exit": "c", "modules": "0 to 1", "at": ""}],
        },
    ]
    numbers = {"convolutions": 2, "kept_ms": 1.5, "new_ms": 0.5, "loss": 0.1, "details": ""}
    assert content["spans"] == [{"choice": merge, "modules": "the whole network", **numbers}]
    assert content["example_inputs"] == [{"shape": [1, 3, 5, 7], "dtype": "float32"}]
    assert content["method"] == "layermerge"
    assert (content["importance"]["kind"], content["importance"]["method"]) == ("kim23", "finetuned")
    assert content["tuned_before"][0]["best"] == "untrained"


NETWORKS = ("model", "trainable", "original", "example_inputs")


def test_a_saved_result_comes_back(tmp_path):
    gm, x = small_net(), images(1, 3, 5, 7)
    result = replace(result_of(gm, x), loss=0.25)
    found = load_result(result.save(tmp_path))
    for name in NETWORKS[:-1]:
        assert torch.equal(getattr(found, name)(x), gm(x))
    assert found.example_inputs[0].shape == x.shape
    grouped = tuple(sorted(result.refusals, key=lambda refusal: refusal.reason))
    for field in fields(CompressionResult):
        if field.name not in (*NETWORKS, "refusals"):
            assert getattr(found, field.name) == getattr(result, field.name), field.name
    assert tuple(sorted(found.refusals, key=lambda refusal: refusal.reason)) == grouped
    assert result_json(found) == result_json(result)
    assert all(node.meta["tensor_meta"].shape for node in found.trainable.graph.nodes if node.op == "call_module")


def test_numbers_that_are_not_finite_come_back_as_nan(tmp_path):
    result = result_of(small_net(), images(1, 3, 5, 7))
    found = load_result(result.save(tmp_path))
    assert found.loss != found.loss
    assert result_json(found) == result_json(result)


def changed(**fields):
    def change(folder):
        content = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(content | fields))

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (changed(schema_version=1), "schema version 1, but this depthcomp reads version .*; compress the model anew"),
        (changed(schema_version=4), "schema version 4, but this depthcomp reads version .*; compress the model anew"),
        (changed(schema_version=2), "is no result of an earlier version; compress the model anew"),
        (changed(method=3), "is no result: method: Input should be a valid string"),
        (changed(surprise=3), "is no result: surprise: Extra inputs"),
        (changed(frontier=[{"predicted_ms": 1.0, "loss": 0.5, "plan": [7]}]), "has no choice number 7"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json is truncated or not JSON"),
        (lambda folder: (folder / "result.json").unlink(), "cannot read .*result.json"),
        (lambda folder: (folder / "plan.json").unlink(), "cannot read .*plan.json"),
        (lambda folder: (folder / "trainable").rename(folder / "gone"), "has no folder trainable, which fine-tuning"),
    ],
)
def test_a_folder_that_cannot_be_gone_on_from_is_refused(spoil, reason, tmp_path):
    folder = result_of(small_net(), images(1, 3, 5, 7)).save(tmp_path)
    spoil(folder)
    with pytest.raises(ArtifactError, match=reason):
        load_result(folder)


def test_the_trainable_form_is_written_last(tmp_path):
    """What is killed before then begins from the same weights again."""
    result_of(small_net(), images(1, 3, 5, 7)).save(tmp_path)
    newest = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    assert newest.parent.name == "trainable"
