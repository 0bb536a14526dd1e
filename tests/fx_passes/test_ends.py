"""What stands at the end of a rewritten span: its own activation, an inserted one, or none."""

import pytest
import torch
from torch import nn
from toy_nets import TOYS, Chain, Inverted, captured, image, largest_error, outputs, relative_error, toy

from depthcomp_errors import PlanError
from fx_passes import Merge, Plan, SpanLimits, enumerate_spans, linearize, merge
from fx_passes.operators import Role, role

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64
GENEROUS = SpanLimits(largest_kernel=11, largest_mac_growth=1e9)


def rewritten(gm, choice):
    plan = Plan((choice,))
    linearized = linearize(gm, plan)
    return linearized, merge(linearized, plan)


def activations(gm):
    return [type(gm.get_submodule(n.target)) for n in gm.graph.nodes if role(gm, n) is Role.ACTIVATION]


def ends_offered(gm, entry, exit_, kind="merge"):
    spans = [span for span in enumerate_spans(gm, GENEROUS) if (span.entry, span.exit) == (entry, exit_)]
    return {
        choice.end
        for span in spans
        for choice in span.choices
        if choice.kind == kind and not getattr(choice, "pruned", ())
    }


@pytest.mark.parametrize("kind", ["merge", "fit"])
def test_an_activation_is_inserted_where_there_is_none_and_removed_where_there_is_one(kind):
    linear_end, active_end = captured(Inverted(), image(5)), captured(Chain(), image())
    assert ends_offered(linear_end, "x", "add", kind) == {"original", "inserted"}
    assert ends_offered(active_end, "x", "act2", kind) == {"original", "none"}


def test_nothing_is_inserted_where_the_span_holds_no_activation():
    gm = captured(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)), image())
    assert ends_offered(gm, "input_1", "_1") == {"original"}


def test_an_activation_with_weights_per_channel_is_inserted_only_where_they_fit():
    def bottleneck(out):
        return captured(nn.Sequential(nn.Conv2d(3, 5, 3), nn.PReLU(5), nn.Conv2d(5, out, 3)), image())

    assert ends_offered(bottleneck(5), "input_1", "_2") == {"original", "inserted"}
    assert ends_offered(bottleneck(7), "input_1", "_2") == {"original"}


def test_the_inserted_activation_is_a_copy_of_the_last_one_inside():
    layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.PReLU(), nn.Conv2d(5, 7, 3)
    gm = captured(nn.Sequential(*layers), image())
    with torch.no_grad():
        gm.get_submodule("3").weight.fill_(0.37)
    _, merged = rewritten(gm, Merge("input_1", "_4", (5, 5), "inserted"))
    assert activations(merged) == [nn.PReLU]
    (inserted,) = (module for module in merged.modules() if isinstance(module, nn.PReLU))
    assert inserted.weight.item() == pytest.approx(0.37)
    assert inserted is not gm.get_submodule("3")


def test_the_inserted_activation_acts_on_the_merged_tensor():
    gm, x = captured(Inverted(), image(5)), image(5)
    whole = {"entry": "x", "exit": "add", "kernel": (3, 3)}
    _, plain = rewritten(gm, Merge(**whole))
    linearized, merged = rewritten(gm, Merge(**whole, end="inserted"))
    (activation,) = (module for module in merged.modules() if isinstance(module, nn.ReLU6))
    wanted = [activation(y) for y in outputs(plain, x)]
    assert largest_error(outputs(merged, x), wanted) < SAME
    assert largest_error(outputs(linearized, x), wanted) < SAME


def test_without_its_activation_a_span_is_linear():
    gm, x = captured(Chain(), image()), image()
    linearized, merged = rewritten(gm, Merge("x", "act3", (9, 7), "none"))
    assert activations(linearized) == activations(merged) == []
    with torch.no_grad():
        assert relative_error(merged(x) + merged(-x), 2 * merged(0 * x)) < SAME


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_end_of_every_toy_net_merges_exactly(name):
    gm, x = toy(name)
    for span in enumerate_spans(gm, GENEROUS):
        for choice in [choice for choice in span.choices if getattr(choice, "end", "original") != "original"]:
            linearized, merged = rewritten(gm, choice)
            assert choice.exit in {node.name for node in linearized.graph.nodes}
            assert largest_error(outputs(merged, x), outputs(linearized, x)) < SAME
            removed = sum(role(gm, node) is Role.ACTIVATION for node in gm.graph.nodes if node.name in span.piece.inner)
            change = 1 if choice.end == "inserted" else -1
            assert len(activations(linearized)) == len(activations(gm)) - removed + change


def test_limits_restrict_the_ends():
    gm = captured(Chain(), image())
    for ends in ((), ("none",), ("inserted",)):
        spans = enumerate_spans(gm, SpanLimits(other_ends=ends))
        assert {choice.end for span in spans for choice in span.choices if choice.kind != "drop"} == {
            "original",
            *ends,
        } - {"inserted"}


def test_an_end_that_is_not_offered_is_refused():
    gm = captured(Chain(), image())
    with pytest.raises(
        PlanError,
        match=r"\+ activation\) cannot be .*, as it ends with an activation already, .*; possible here: merge",
    ):
        linearize(gm, Plan((Merge("x", "act2", (5, 3), "inserted"),)))
