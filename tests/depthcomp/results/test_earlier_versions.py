"""What an earlier release wrote is read, down to every choice; what none wrote is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from made_result import make_result

from depthcomp.errors import ArtifactError
from depthcomp.preparation import Refusal
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.loading import load_result
from depthcomp.results.stored_numbers import result_json
from fx_passes import Drop, Fit, Merge, Plan
from latency_tables import Timing

MERGE, FIT, DROP = Merge("x", "_1", (3, 5), "none", ("_0",)), Fit("_1", "_3", (1, 3)), Drop("_3", "_4")
PLAN = Plan((MERGE, FIT, DROP))


def stored(choice):
    """Return a choice as JSON values of the first version: every kind had all fields."""
    kernel, pruned = getattr(choice, "kernel", None), getattr(choice, "pruned", ())
    return {
        "entry": choice.entry, "exit": choice.exit, "kind": choice.kind,
        "kernel": None if kernel is None else list(kernel), "end": getattr(choice, "end", "original"),
        "pruned": list(pruned),
    }  # fmt: skip


def test_the_first_form_of_a_choice():
    assert [stored(choice) for choice in PLAN] == [
        {"entry": "x", "exit": "_1", "kind": "merge", "kernel": [3, 5], "end": "none", "pruned": ["_0"]},
        {"entry": "_1", "exit": "_3", "kind": "fit", "kernel": [1, 3], "end": "original", "pruned": []},
        {"entry": "_3", "exit": "_4", "kind": "drop", "kernel": None, "end": "original", "pruned": []},
    ]


def timing(*rounds_ms):
    return {
        "ms": rounds_ms[1], "least_ms": rounds_ms[0], "spread": 0.13, "n": 9, "drifted_rounds": 0,
        "rounds_ms": list(rounds_ms),
    }  # fmt: skip


def numbers():
    """Return a result.json of version 2."""
    return {
        "schema_version": 2,
        "method": "layermerge",
        "budget": {"value": 70.0, "unit": "%", "text": "70%"},
        "budget_ms": 1.4,
        "original": timing(2.0, 2.2, 2.4),
        "measured": timing(1.0, 1.1, 1.2),
        "predicted_ms": 1.05,
        "residual": 0.0227,
        "calibration": {"intercept_ms": 0.1, "slope": 0.9, "residual_ms": 0.05, "n": 3},
        "speedup": 2.0,
        "loss": 0.25,
        "rank_correlation": None,
        "importance": {
            "kind": "calibrated", "method": "calibrated", "settings": {"memory_mib": 512}, "seconds": 2.5, "choices": 2,
        },
        "original_depth": 3,
        "depth": 1,
        "free_merges": [stored(Merge("x", "_0", (1, 1)))],
        "spans": [
            {**stored(MERGE), "convolutions": 2, "kept_ms": 1.5, "new_ms": 0.5, "loss": 0.1},
            {**stored(FIT), "convolutions": 1, "kept_ms": 0.75, "new_ms": 0.25, "loss": 0.2},
            {**stored(DROP), "convolutions": 1, "kept_ms": 0.25, "new_ms": 0.0, "loss": None},
        ],
        "refusals": [
            {"reason": "_5: a pool", "count": 2, "spans": [{"entry": "a", "exit": "b"}, {"entry": "b", "exit": "c"}]},
            {"reason": "other", "count": 1, "spans": [{"entry": "c", "exit": "d"}]},
        ],
        "frontier_choices": [stored(choice) for choice in PLAN],
        "frontier": [
            {"predicted_ms": 1.0, "loss": 0.5, "plan": [0, 1, 2]},
            {"predicted_ms": 1.5, "loss": 0.25, "plan": [1]},
            {"predicted_ms": 2.0, "loss": 0.0, "plan": []},
        ],
        "finetuned": None,
        "tuned_before": [],
        "warnings": ["careful"],
        "environment": {
            "backend": "fake", "backend_version": "1", "device": "none", "threads": 1, "precision": "fp32",
            "os": "Linux", "python": "3.11", "machine": "wood", "driver": None,
        },
        "example_inputs": [{"shape": [1, 3, 5, 7], "dtype": "float32"}],
        "seed": 3,
        "seconds": {"capture": 0.1},
    }  # fmt: skip


def importance():
    """Return an importance.json of version 1."""
    return {
        "kind": "importance table", "version": 1, "method": "calibrated", "settings": {"memory_mib": 512},
        "algorithm": "1", "network": "n", "data": "d", "seed": 3, "seconds": 2.5,
        "choices": [{**stored(MERGE), "loss": 0.1}, {**stored(FIT), "loss": 0.2}, {**stored(DROP), "loss": None}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folder with a saved network, as every release writes it."""
    result = make_result()
    return replace(result, table=replace(result.table, entries={})).save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(network):
    """The same folder, its plan, importances and numbers as an earlier release wrote them."""
    plan = {"schema_version": 1, "choices": [stored(choice) for choice in PLAN]}
    for name, content in (("plan", plan), ("importance", importance()), ("result", numbers())):
        (network / f"{name}.json").write_text(json.dumps(content))
    return network


def test_every_number_and_choice_of_a_result_of_version_2_is_read(folder):
    found = load_result(folder)
    assert (found.plan, found.free_merges) == (PLAN, Plan((Merge("x", "_0", (1, 1)),)))
    assert found.frontier == (
        FrontierPoint(1.0, 0.5, PLAN), FrontierPoint(1.5, 0.25, Plan((FIT,))), FrontierPoint(2.0, 0.0, Plan()),
    )  # fmt: skip
    assert found.original_timing == Timing((2.0, 2.2, 2.4), 9)
    assert found.measured_timing == Timing((1.0, 1.1, 1.2), 9)
    assert (found.budget_ms, found.predicted_ms, found.loss, found.rank_correlation) == (1.4, 1.05, 0.25, None)
    assert (found.original_depth, found.depth, found.seed, found.method) == (3, 1, 3, "layermerge")
    assert (found.warnings, found.seconds, str(found.budget)) == (("careful",), {"capture": 0.1}, "70%")
    assert found.environment.machine == "wood"
    assert found.example_inputs[0].shape == (1, 3, 5, 7)
    assert (found.finetuned, found.tuned_before) == (None, ())


def test_spans_of_version_2_which_told_no_modules_are_told_by_their_nodes(folder):
    found = load_result(folder)
    assert found.spans[:2] == (
        SpanRecord(MERGE, "after x, up to _1", 2, 1.5, 0.5, 0.1),
        SpanRecord(FIT, "after _1, up to _3", 1, 0.75, 0.25, 0.2),
    )
    dropped = found.spans[2]
    assert (dropped.choice, dropped.modules, dropped.kept_ms) == (DROP, "after _3, up to _4", 0.25)
    assert math.isnan(dropped.loss)
    assert found.refusals == (
        Refusal("a", "b", "after a, up to b", "_5: a pool"),
        Refusal("b", "c", "after b, up to c", "_5: a pool"),
        Refusal("c", "d", "after c, up to d", "other"),
    )
    assert [refusal.reason for refusal in found.refusals] == ["_5: a pool", "_5: a pool", "other"]


def test_the_importances_of_version_1_beside_it_are_read(folder):
    table = load_result(folder).importance
    assert list(table.losses) == list(PLAN)
    assert (table.losses[MERGE], table.losses[FIT]) == (0.1, 0.2)
    assert math.isnan(table.losses[DROP])
    assert (table.method, table.settings, table.algorithm) == ("calibrated", {"memory_mib": 512}, "1")
    assert (table.network, table.data, table.seed, table.seconds) == ("n", "d", 3, 2.5)


def test_what_was_read_is_saved_in_the_current_version_and_is_the_same(folder, tmp_path):
    found = load_result(folder)
    again = found.save(tmp_path / "again")
    versions = [json.loads((again / f"{name}.json").read_text()) for name in ("plan", "importance", "result")]
    assert [v.get("schema_version", v.get("version")) for v in versions] == [2, 2, 3]
    assert result_json(load_result(again)) == result_json(found)
    assert torch.equal(load_result(again).model(found.example_inputs[0]), found.model(found.example_inputs[0]))


def without(name):
    content = numbers()
    del content["spans"][0][name]
    return content


def with_choice(**fields):
    content = numbers()
    content["free_merges"][0].update(fields)
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (numbers() | {"schema_version": 1}, "schema version 1, but this depthcomp reads version"),
        (numbers() | {"schema_version": 4}, "schema version 4, but this depthcomp reads version"),
        (numbers() | {"schema_version": "2"}, "schema version '2', but this depthcomp reads version"),
        (numbers() | {"schema_version": 3}, "is no result: spans.0.choice: Field required"),
        (numbers() | {"surprise": 1}, "is no result: surprise: Extra inputs"),
        (numbers() | {"refusals": [{}]}, "is no result of an earlier version; compress the model anew"),
        (without("convolutions"), "is no result of an earlier version; compress the model anew"),
        (without("kernel"), r"is no result: spans.0.choice: .* lacks 'kernel'"),
        (with_choice(kind="widen"), r"is no result: free_merges.0: kind \(='widen'\) must be one of drop, fit"),
        (with_choice(kernel=[3, 0]), r"is no result: free_merges.0: .*kernel \(=\[3, 0\]\) .* must be two whole"),
        (with_choice(kind="drop"), r"is no result: free_merges.0: the 'drop' choice .* has the unknown field 'kernel'"),
        (with_choice(end="soft"), r"is no result: free_merges.0: .*end \(='soft'\) .* must be one of original"),
    ],
)  # fmt: skip
def test_other_versions_and_broken_files_of_an_earlier_one_are_refused(folder, content, reason):
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=reason):
        load_result(folder)
