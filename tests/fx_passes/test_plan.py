"""A plan: JSON both ways, and the errors of malformed text."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import PlanError
from fx_passes import Drop, Fit, Merge, Plan
from fx_passes.choice import End

pytestmark = pytest.mark.whole

names = st.text(min_size=1, max_size=11)
kernels = st.tuples(st.integers(1, 99), st.integers(1, 99))
choices = st.one_of(
    st.builds(Fit, names, names, kernels, st.sampled_from(get_args(End))),
    st.builds(Merge, names, names, kernels, st.sampled_from(get_args(End)), st.lists(names, max_size=3).map(tuple)),
    st.builds(Drop, names, names),
)


@given(st.lists(choices, max_size=5))
def test_json_both_ways(listed):
    plan = Plan.of(listed)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert list(plan) == listed
    assert len(plan) == len(listed)


def written(**changes):
    """Return the JSON of a plan of one choice, some of its fields changed."""
    content = json.loads(Plan((Fit("a", "b", (3, 3)),)).to_json())
    choice = content["choices"][0]
    (choice if set(changes) & {*choice, "extra", "pruned"} else content).update(changes)
    return json.dumps(content)


def test_text_that_is_not_json_is_refused():
    with pytest.raises(PlanError, match=r"the plan is not JSON .*write it with Plan\.to_json"):
        Plan.from_json("{")


@pytest.mark.parametrize("text", [b"\xff", "[" * 100_000], ids=["bytes", "nested"])
def test_what_no_json_reader_takes_is_refused(text):
    with pytest.raises(PlanError, match=r"the plan is not JSON"):
        Plan.from_json(text)


def test_a_plan_is_read_from_text():
    with pytest.raises(PlanError, match=r"read from JSON text, and a NoneType was given"):
        Plan.from_json(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (written(schema_version=True), "schema_version True, and this release reads 1 and 2"),
        ("[]", "a plan is a JSON object, and a list was given"),
        ("{}", "schema_version None"),
        (written(schema_version=3), "schema_version 3, and this release reads 1 and 2"),
        ('{"schema_version": 2}', "needs a list of choices"),
        (written(choices={"a": 1}), "needs a list of choices"),
        (written(choices=["fit"]), "'fit' is no choice of a plan"),
        (written(kind="shrink"), r"kind \(='shrink'\) must be one of drop, fit, merge"),
        (written(extra=1), "has the unknown field 'extra'; its fields are entry, exit, kernel, end"),
        (written(entry=3), r"entry \(=3\) of a choice must be the name of a node"),
        (written(exit=None), r"exit \(=None\) of a choice must be the name of a node"),
        (written(kind="drop"), "has the unknown field .*; its fields are entry, exit"),
        (written(kernel=None), r"kernel \(=None\) of a choice must be two whole numbers"),
        (written(kernel=[3]), r"kernel \(=\[3\]\)"),
        (written(kernel=[3, 0]), "two whole numbers"),
        (written(kernel=[3, 1.5]), "two whole numbers"),
        (written(kernel=[True, 3]), "two whole numbers"),
        (written(end="softmax"), r"end \(='softmax'\) of a choice must be one of original, inserted, none"),
        (written(end=["none"]), r"end \(=\['none'\]\)"),
        (written(kind="merge", pruned="conv"), r"pruned \(='conv'\) of a choice must be a list"),
        (written(kind="merge", pruned=[1]), r"pruned \(=\[1\]\)"),
    ],
)
def test_malformed_plans_say_what_is_wrong(text, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_end_and_pruned_may_be_left_out():
    text = json.dumps(
        {"schema_version": 2, "choices": [{"entry": "a", "exit": "b", "kind": "merge", "kernel": [1, 3]}]}
    )
    assert Plan.from_json(text) == Plan((Merge("a", "b", (1, 3)),))


def test_plans_of_version_1_are_read():
    """There every kind had all fields."""
    ends = {"entry": "a", "exit": "b"}
    stored = [
        {**ends, "kind": "drop", "kernel": None, "end": "original", "pruned": []},
        {**ends, "kind": "fit", "kernel": [3, 3], "end": "inserted", "pruned": []},
        {**ends, "kind": "merge", "kernel": [3, 1], "end": "none", "pruned": ["c"]},
        {**ends, "kind": "merge", "kernel": [3, 1]},
    ]
    wanted = (
        Drop("a", "b"),
        Fit("a", "b", (3, 3), "inserted"),
        Merge("a", "b", (3, 1), "none", ("c",)),
        Merge("a", "b", (3, 1)),
    )
    assert Plan.from_json(json.dumps({"schema_version": 1, "choices": stored})) == Plan(wanted)


def test_a_choice_reads_as_what_it_does():
    assert str(Fit("a", "b", (3, 3), "inserted")) == "fit 3x3 (a -> b] + activation"
    assert str(Merge("a", "b", (3, 3), "none", ("c", "d"))) == "merge 3x3 (a -> b] without c, d - activation"


def test_a_choice_prints_as_a_user_would_write_it():
    assert str(Fit("a", "b", (3, 1))) == "fit 3x1 (a -> b]"
    assert str(Drop("a", "b")) == "drop (a -> b]"
