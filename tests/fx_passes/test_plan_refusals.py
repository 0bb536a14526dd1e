"""Plans that a graph cannot take are refused with the reason."""

import pytest
from toy_nets import frozen_copy, is_unchanged, plan_of, toy

from depthcomp_errors import PlanError
from fx_passes import linearize, merge

pytestmark = pytest.mark.whole


def test_overlapping_spans_are_refused():
    gm, _ = toy("chain")
    plan = plan_of(("x", "act2", "fit", (3, 3)), ("act1", "act3", "fit", (3, 3)))
    with pytest.raises(PlanError, match=r"rewrites .* twice: its spans must not overlap"):
        linearize(gm, plan)


def test_a_span_inside_another_is_refused():
    gm, _ = toy("residual")
    plan = plan_of(("x", "act2", "fit", (3, 3)), ("x", "bn2", "fit", (3, 3)))
    with pytest.raises(PlanError, match="twice"):
        linearize(gm, plan)


def test_unknown_nodes_are_refused():
    gm, _ = toy("chain")
    with pytest.raises(PlanError, match=r"no tensor 'elsewhere'"):
        linearize(gm, plan_of(("x", "elsewhere", "merge", (3, 3))))


@pytest.mark.parametrize(
    ("choice", "reason", "offer"),
    [
        (("x", "act2", "drop"), "it changes the shape of its tensor", "merged 5x3"),
        (("x", "act2", "merge", (3, 3)), "its layers merge into a kernel of 5x3", "merged 5x3"),
        (("x", "act2", "fit", (2, 2)), "a fitted kernel needs a central pixel, and 2x2 has none", "fitted 1x1"),
        (("x", "act2", "fit", (9, 9)), "its layers together read 5x3 pixels", "fitted 1x1"),
    ],
)
def test_impossible_choices_are_refused_with_the_reason_and_what_is_possible(choice, reason, offer):
    gm, _ = toy("chain")
    before = frozen_copy(gm)
    with pytest.raises(PlanError, match=rf"\(x -> act2\]\) cannot be .*, as {reason}.*; possible here: .*{offer}"):
        linearize(gm, plan_of(choice))
    assert is_unchanged(gm, before)


def test_merge_refuses_a_graph_that_was_never_linearized():
    gm, _ = toy("chain")
    with pytest.raises(PlanError, match=r"merge 5x3 \(x -> act2\].*linearized by this plan"):
        merge(gm, plan_of(("x", "act2", "merge", (5, 3))))


def test_merge_refuses_the_wrong_plan():
    gm, _ = toy("chain")
    linearized = linearize(gm, plan_of(("x", "act2", "merge", (5, 3))))
    for choice in (("act1", "act3", "merge", (3, 3)), ("act2", "act3", "drop"), ("x", "act3", "fit", (3, 3))):
        with pytest.raises(PlanError, match="linearized by this plan"):
            merge(linearized, plan_of(choice))
