"""What is no captured graph, plan or limit is refused in one sentence."""

import pytest
from torch import fx, nn
from toy_nets import captured, image, straight

from depthcomp_errors import PlanError
from fx_passes import (
    Fit,
    Plan,
    SpanLimits,
    enumerate_spans,
    free_merges,
    linearize,
    merge,
    random_plan,
    solved_without_norm,
    structure_tree,
)


@pytest.mark.parametrize(
    "look",
    [enumerate_spans, structure_tree, free_merges, lambda gm: linearize(gm, Plan()), lambda gm: merge(gm, Plan())],
)
def test_networks_that_are_not_captured_are_refused(look):
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(PlanError, match=r"a Sequential was given; pass what capture returned"):
        look(net)
    with pytest.raises(PlanError, match=r"holds no shapes; pass what capture returned"):
        look(fx.symbolic_trace(net))


@pytest.mark.parametrize("plan", [None, Plan().to_json()])
@pytest.mark.parametrize("rewrite", [linearize, merge])
def test_rewriting_needs_a_plan(rewrite, plan):
    with pytest.raises(PlanError, match=rf"a Plan is needed, and a {type(plan).__name__} was given"):
        rewrite(captured(straight(2, 3), image()), plan)


@pytest.mark.parametrize(
    ("ends", "found"),
    [(("input_1", "nowhere"), "nowhere is not in the graph"), (("input_1", "_3"), "2 is no convolution of the input")],
)
def test_fitted_convolutions_are_found_only_where_they_were_placed(ends, found):
    gm = captured(straight(2, 3), image())
    with pytest.raises(PlanError, match=rf"in linearized form \({found}\); merge needs the graph linearized"):
        solved_without_norm(gm, Plan((Fit(*ends, (3, 3)),)))


def test_random_plans_need_a_generator():
    with pytest.raises(PlanError, match=r"rng \(=0\) must draw random numbers; pass numpy\.random\.default_rng"):
        random_plan(captured(straight(2, 3), image()), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("longest_span", 0), ("largest_kernel", -1), ("largest_kernel", 2.5), ("largest_mac_growth", float("nan")),
     ("other_ends", ("foo",))],
)  # fmt: skip
def test_limits_that_mean_nothing_are_refused(name, value):
    with pytest.raises(PlanError, match=rf"{name} \(="):
        SpanLimits(**{name: value})
