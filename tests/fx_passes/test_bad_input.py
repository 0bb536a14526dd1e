"""What is no captured graph, plan or limit is refused in one sentence."""

import pytest
from torch import fx, nn
from toy_nets import captured, image, straight

from depthcomp_errors import PlanError
from fx_passes import Plan, SpanLimits, enumerate_spans, free_merges, linearize, random_plan, structure_tree


@pytest.mark.parametrize("look", [enumerate_spans, structure_tree, free_merges, lambda gm: linearize(gm, Plan())])
def test_networks_that_are_not_captured_are_refused(look):
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(PlanError, match=r"a Sequential was given; pass what capture returned"):
        look(net)
    with pytest.raises(PlanError, match=r"holds no shapes; pass what capture returned"):
        look(fx.symbolic_trace(net))


@pytest.mark.parametrize("plan", [None, Plan().to_json()])
def test_linearize_needs_a_plan(plan):
    with pytest.raises(PlanError, match=rf"a Plan is needed, and a {type(plan).__name__} was given"):
        linearize(captured(straight(2, 3), image()), plan)


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
