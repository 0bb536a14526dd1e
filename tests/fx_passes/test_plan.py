"""A plan: JSON both ways, and the errors of malformed text."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import PlanError
from fx_passes import Plan, SpanChoice
from fx_passes.plan import End

names = st.text(min_size=1, max_size=11)
kernels = st.tuples(st.integers(1, 99), st.integers(1, 99))
choices = st.one_of(
    st.builds(SpanChoice, names, names, st.sampled_from(["merge", "fit"]), kernels, st.sampled_from(get_args(End))),
    st.builds(SpanChoice, names, names, st.just("merge"), kernels, pruned=st.lists(names, max_size=3).map(tuple)),
    st.builds(SpanChoice, names, names, st.just("drop"), st.none()),
)


@given(st.lists(choices, max_size=5))
def test_json_both_ways(listed):
    plan = Plan.of(listed)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert list(plan) == listed
    assert len(plan) == len(listed)


def written(**changes):
    """Return the JSON of a plan of one choice, some of its fields changed; None takes a field away."""
    content = json.loads(Plan((SpanChoice("a", "b", "fit", (3, 3)),)).to_json())
    choice = content["choices"][0]
    (choice if set(changes) & {*choice, "extra"} else content).update(changes)
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
        (written(schema_version=True), "schema_version True, and this release reads 1"),
        ("[]", "schema_version list"),
        ("{}", "schema_version None"),
        (written(schema_version=2), "schema_version 2, and this release reads 1"),
        ('{"schema_version": 1}', "needs a list of choices"),
        (written(choices={"a": 1}), "needs a list of choices"),
        (written(choices=["fit"]), "'fit' is no choice of a plan"),
        (written(kind="shrink"), "a known kind"),
        (written(extra=1), "needs the fields"),
        (written(entry=3), "names of nodes"),
        (written(exit=None), "names of nodes"),
        (written(kind="drop"), r"kernel \(=\[3, 3\]\) of a 'drop' choice"),
        (written(kernel=None), r"kernel \(=None\) of a 'fit' choice"),
        (written(kernel=[3]), r"kernel \(=\[3\]\)"),
        (written(kernel=[3, 0]), "two sizes"),
        (written(kernel=[3, 1.5]), "two sizes"),
        (written(kernel=[True, 3]), "two sizes"),
        (written(end="softmax"), r"end \(='softmax'\) of a choice must be one of original, inserted, none"),
        (written(end=["none"]), r"end \(=\['none'\]\)"),
        (written(pruned="conv"), r"pruned \(='conv'\) of a choice must be a list"),
        (written(pruned=[1]), r"pruned \(=\[1\]\)"),
    ],
)
def test_malformed_plans_say_what_is_wrong(text, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_choices_sort_also_with_and_without_a_kernel():
    listed = [
        SpanChoice("a", "b", "fit", (3, 3)),
        SpanChoice("a", "b", "drop"),
        SpanChoice("a", "b", "fit", (1, 1)),
    ]
    assert [choice.kernel for choice in sorted(listed)] == [None, (1, 1), (3, 3)]


def test_end_and_pruned_may_be_left_out():
    text = json.dumps({"schema_version": 1, "choices": [{"entry": "a", "exit": "b", "kind": "drop", "kernel": None}]})
    assert Plan.from_json(text) == Plan((SpanChoice("a", "b", "drop"),))


def test_a_choice_reads_as_what_it_does():
    assert str(SpanChoice("a", "b", "fit", (3, 3), "inserted")) == "fit 3x3 (a -> b] + activation"
    assert (
        str(SpanChoice("a", "b", "merge", (3, 3), "none", ("c", "d"))) == "merge 3x3 (a -> b] without c, d - activation"
    )
