"""Bodies: what takes a span's place computes, and costs, what the merged network really has there."""

from collections import Counter

import pytest
import torch
from torch import fx
from toy_nets import TOYS, largest_error, outputs, toy

from fx_passes import CapturedNetwork, Drop, Fit, Plan, SpanLimits, linearize, merge
from fx_passes.kinds import kind_names, kind_of
from fx_passes.shapes import propagate_shapes
from fx_passes.workload import Workload

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64
LIMITS = SpanLimits(largest_kernel=11, largest_mac_growth=1e9, kinds=tuple(kind_names()))
SYMMETRIC = ("chain", "residual", "inverted", "depthwise")  # whose merged convolutions need no padding of their own


def choices_of(network):
    return [choice for span in network.spans(LIMITS) for choice in span.choices]


def is_solved(network, choice):
    """Say whether weights of a choice's body are solved for."""
    return bool(kind_of(choice).slots(choice, network.piece(choice)))


def with_body(network, choice, x):
    """Return what the network gives where the body of a choice stands in it."""
    kind, piece = kind_of(choice), network.piece(choice)
    body = kind.body(choice, piece)

    class Replaced(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name == piece.entry:
                self.entry = value
            return body.run(network.gm, self.entry, kind.weights(choice, piece)) if n.name == body.at else value

    with torch.no_grad():
        return Replaced(network.gm).run(x)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_body_with_the_weights_of_its_kind_computes_what_the_merged_network_does(name):
    gm, x = toy(name)
    network = CapturedNetwork(gm)
    given = [choice for choice in choices_of(network) if not is_solved(network, choice)]
    for choice in given[:: len(given) // 40 + 1]:
        plan = Plan((choice,))
        found = with_body(network, choice, x)
        assert (
            largest_error(outputs(lambda _, found=found: found, x), outputs(merge(linearize(gm, plan), plan), x)) < SAME
        )


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_operators_of_a_choice_are_those_of_the_merged_network(name):
    gm, x = toy(name)
    network = CapturedNetwork(gm)
    choices = choices_of(network)
    for choice in choices[:: len(choices) // 40 + 1]:
        piece = network.piece(choice)
        left = (operator for node, operator in network.workload.kept.items() if node not in piece.nodes)
        wanted = [*left, *kind_of(choice).operators(choice, piece)]
        merged = merge(linearize(gm, Plan((choice,))), Plan((choice,)))
        propagate_shapes(merged, [x])
        assert Counter(map(told, Workload(CapturedNetwork(merged)).kept.values())) == Counter(map(told, wanted)), choice


def told(operator):
    """Return what a runtime computes, without weights."""
    geometry = operator.geometry
    shape = tuple(geometry.weight.shape), geometry.stride, geometry.padding, geometry.groups
    return operator.op, *shape, operator.in_shape, operator.epilogue, operator.dilation


def test_a_dropped_span_leaves_an_empty_body():
    network = CapturedNetwork(toy("residual")[0])
    drops = [choice for choice in choices_of(network) if isinstance(choice, Drop)]
    assert drops
    for choice in drops:
        body = kind_of(choice).body(choice, network.piece(choice))
        assert body.operators == {}
        assert network.workload.of_body(body) == ()
        assert body.at == choice.exit


def test_the_slot_of_a_fit_is_its_body():
    network = CapturedNetwork(toy("chain")[0])
    for choice in [choice for choice in choices_of(network) if isinstance(choice, Fit)]:
        piece = network.piece(choice)
        (slot,) = kind_of(choice).slots(choice, piece)
        ((name, operator),) = kind_of(choice).body(choice, piece).operators.items()
        assert (slot.node, slot.entry, slot.target) == (name, choice.entry, piece.pre_activation)
        assert slot.operator.weight.shape == operator.weight.shape
        assert (slot.kept, slot.other, slot.reads) == (False, None, (choice.entry,))
