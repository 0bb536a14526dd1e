"""Comparison of plans: each loss is found once, first on one fold, then on all."""

import pytest

from depthcomp.progress import silent
from depthcomp.search.comparison import PlanComparer
from fx_passes import Drop, Plan

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


@pytest.fixture
def comparer():
    return PlanComparer(Known(), ("none", "nearest"), silent)


def test_a_glance_is_the_loss_on_the_first_fold_in_the_better_way(comparer):
    assert (comparer.glance(ONE), comparer.glance(OTHER)) == (0.3, 0.2)
    assert comparer.glances == {ONE: 0.3, OTHER: 0.2}
    asked = len(comparer._refitter.asked)
    comparer.glance(ONE)
    assert len(comparer._refitter.asked) == asked
    assert comparer.verified == {}


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
