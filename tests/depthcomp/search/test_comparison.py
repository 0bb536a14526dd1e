"""Comparison of plans: each loss is found once, first without a joint refit, then with one."""

import pytest

from depthcomp.progress import silent
from depthcomp.search.comparison import PlanComparer
from fx_passes import Drop, Plan

JOINT = {False: 0.7, True: 0.4}  # the loss without a joint refit, by whether kept layers are refitted
ONE, OTHER = Plan((Drop("a", "b"),)), Plan((Drop("b", "c"),))
LOSSES = {  # by plan and way, on the first fold and on all
    (ONE, "none"): (0.4, 0.5), (ONE, "nearest"): (0.3, 0.6), (ONE, "all"): (0.2, 0.1),
    (OTHER, "none"): (0.2, 0.3), (OTHER, "nearest"): (0.2, 0.3), (OTHER, "all"): (0.1, 0.9),
}  # fmt: skip


class Known:
    """A refitter whose losses are known."""

    def __init__(self):
        self.asked = []

    def loss(self, plan, *, kept, folds=None):
        self.asked.append((plan, kept, folds))
        return LOSSES[plan, kept][folds is None]


class KnownJoint:
    """A judge of plans without a joint refit, whose losses are known."""

    def __init__(self):
        self.fitted, self.asked = [], []

    def fit(self, plans):
        self.fitted.append(list(plans))

    def loss(self, plan, *, refitted):
        self.asked.append(plan)
        return JOINT[refitted]


@pytest.fixture
def comparer():
    return PlanComparer(KnownJoint(), Known(), ("none", "nearest"), silent)


def test_a_glance_is_the_loss_without_a_joint_refit_in_the_better_way(comparer):
    comparer.glance_at([ONE, OTHER, ONE])
    assert comparer.glances == {ONE: 0.4, OTHER: 0.4}
    comparer.glance_at([OTHER])
    assert comparer._joint.fitted == [[ONE, OTHER], []]
    assert comparer._joint.asked == [ONE, ONE, OTHER, OTHER]
    assert comparer.verified == {}
    assert comparer._refitter.asked == []


def test_one_way_needs_no_choice():
    comparer = PlanComparer(KnownJoint(), Known(), ("none",), silent)
    assert comparer.way(ONE) == "none"
    comparer.glance_at([ONE])
    assert comparer.glances == {ONE: 0.7}
    assert comparer._refitter.asked == []


def test_the_first_fold_chooses_the_way_that_is_judged_on_all(comparer):
    assert comparer.way(ONE) == "nearest"
    assert comparer.loss(ONE) == 0.6
    assert comparer.verified == {ONE: 0.6}
    assert [kept for _, kept, folds in comparer._refitter.asked if folds is None] == ["nearest"]


def test_other_kept_layers_count_where_all_folds_agree(comparer):
    assert comparer.gain_of(ONE, "all") == pytest.approx(0.5)
    assert comparer.gain_of(OTHER, "all") == 0.0
    assert comparer.gain_of(ONE, "none") == 0.0  # the first fold says so
    assert (ONE, "none", None) not in comparer._refitter.asked
