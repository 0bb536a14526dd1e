"""The structure tree of every kind of graph, cut by cut."""

import pytest
import torch
from torch import nn
from toy_nets import TOYS, Residual, Sandwich, TwoInputs, captured, image, straight, toy

from fx_passes import SpanLimits, enumerate_spans, structure_tree

pytestmark = pytest.mark.whole

NO_LIMITS = SpanLimits(longest_span=20, largest_kernel=99, largest_mac_growth=1e9)


def tree(name):
    return structure_tree(toy(name)[0])


def chains(level):
    """Return the cuts of every level with units, outermost first."""
    return [inner.cuts for inner in level.levels() if inner.units]


def test_a_chain_is_one_level_of_operators_with_their_norms_and_activations():
    level = tree("chain")
    assert level.cuts == ("x", "act1", "act2", "act3", "output")
    assert level.units[0].nodes == ("conv1", "bn1", "act1")
    assert all(not unit.branches and not unit.region for unit in level.units)


def test_a_residual_block_is_one_unit_with_a_branch_and_an_empty_skip():
    level = tree("residual")
    assert level.cuts == ("x", "act2", "output")
    block = level.units[0]
    assert block.nodes == ("add", "act2")
    assert block.region == ("conv1", "bn1", "act1", "conv2", "bn2")
    assert [branch.cuts for branch in block.branches] == [("x",), ("x", "act1", "bn2")]


def test_skips_nest():
    level = tree("nested")
    (outer,) = [unit for unit in level.units if unit.branches]
    body = outer.branches[1]
    assert body.cuts == ("x", "inner_act2", "after")
    assert [branch.cuts for branch in body.units[0].branches] == [("x",), ("x", "inner_act1", "inner_bn2")]


def test_a_projection_is_a_branch_of_its_own():
    level = tree("projection")
    block = level.units[0]
    assert {branch.cuts for branch in block.branches} == {("x", "act1", "conv2"), ("x", "norm")}
    assert not block.tangled


def test_concatenated_branches_run_side_by_side():
    block = tree("branches").units[0]
    assert {branch.cuts for branch in block.branches} == {
        ("x", "one"),
        ("x", "act", "three"),
        ("x", "pool", "project"),
    }
    assert block.nodes == ("cat",)


def test_squeeze_and_excite_joins_at_the_multiplication():
    level = tree("squeeze_excite")
    assert level.cuts == ("x", "act", "mul", "project", "output")
    gate = level.units[1]
    assert [branch.cuts for branch in gate.branches] == [("act",), ("act", "squeeze", "sigmoid")]


def test_tangled_branches_keep_their_simple_chains():
    level = tree("dense")
    (dense,) = [unit for unit in level.units if unit.branches]
    assert dense.tangled
    assert {branch.cuts for branch in dense.branches if branch.units} >= {
        ("x", "cat", "layers_0_1", "layers_0_3"),
        ("cat_1", "layers_1_1", "layers_1_3"),
        ("cat_2", "layers_2_1", "layers_2_3"),
    }


def test_two_inputs_are_two_branches():
    gm = captured(TwoInputs(), image(3), image(2))
    level = structure_tree(gm)
    join = next(unit for unit in level.units if unit.branches)
    assert {branch.cuts for branch in join.branches} == {
        ("<inputs>", "a", "left1", "left2"),
        ("<inputs>", "b", "right"),
    }
    assert level.cuts[-2:] == ("end", "output")


def test_several_outputs_leave_the_chains_between_them():
    found = chains(tree("backbone"))
    assert ("x", "stages_0_1", "stages_0_3", "output") in found
    assert ("stages_0_3", "stages_1_1", "stages_1_3") in found
    assert ("stages_1_3", "stages_2_1", "stages_2_3") in found


def spans_with_choices(name):
    return {(span.entry, span.exit) for span in enumerate_spans(toy(name)[0], NO_LIMITS) if span.choices}


def test_stages_that_laterals_read_keep_their_residual_blocks():
    found = chains(tree("pyramid"))
    assert found[0] == ("x", "stem", "fine_0_act2", "fine_1_act2", "output")
    assert ("fine_1_act2", "down", "coarse_0_act2", "coarse_1_act2") in found
    assert ("coarse_0_act2", "coarse_1_act1", "coarse_1_bn2") in found  # inside the second block
    assert {("coarse_1_act2", "laterals_1"), ("fine_1_act2", "laterals_0"), ("add_4", "smooth")} < set(found)
    spans = spans_with_choices("pyramid")
    assert {("fine_0_act2", "fine_1_act2"), ("coarse_0_act2", "coarse_1_act2"), ("down", "coarse_1_act2")} < spans


def test_no_span_crosses_a_tensor_that_is_also_read_elsewhere():
    spans = spans_with_choices("pyramid")
    assert max(len(level.cuts) for level in tree("pyramid").levels()) <= NO_LIMITS.longest_span
    crossing = {
        ("fine_0_act2", "down"),  # fine_1_act2, in between, is read by a lateral
        ("stem", "coarse_0_act2"),
        ("coarse_0_act2", "laterals_1"),  # coarse_1_act2 is returned
        ("fine_1_act2", "laterals_1"),
        ("fine_1_act2", "add_4"),  # one of its operands is returned
        ("fine_1_act2", "smooth"),
        ("laterals_1", "add_4"),  # the other operand comes from elsewhere
        ("laterals_0", "smooth"),
    }
    assert not spans & crossing


def test_a_trunk_with_heads_and_outputs_in_the_middle_keeps_its_blocks():
    found = chains(tree("heads"))
    assert found[0] == ("x", "first_0_act2", "first_1_act2", "output")
    assert {
        ("first_1_act2", "heads_0_1", "heads_0_2"),
        ("first_1_act2", "second_0_act2", "second_1_act2"),
        ("second_1_act2", "heads_1_1", "heads_1_2"),
        ("second_0_act2", "second_1_act1", "second_1_bn2"),
    } < set(found)
    spans = spans_with_choices("heads")
    assert ("first_1_act2", "second_1_act2") in spans
    assert not spans & {("first_0_act2", "heads_0_1"), ("second_0_act2", "heads_1_1"), ("x", "second_0_act2")}


def test_encoders_that_decoders_also_read_keep_their_blocks():
    found = chains(tree("unet"))
    outer = ("encoders_0_act2", "pool", "encoders_1_act2", "cat", "mixes_0", "decoders_0_act2")
    assert found[:2] == [("x", "stem", "encoders_0_act2", "output"), ("stem", "encoders_0_act1", "encoders_0_bn2")]
    assert outer in found
    assert ("encoders_1_act2", "pool_1", "bottom_0_act2", "bottom_1_act2") in found
    assert ("cat_1", "mixes_1", "decoders_1_act2") in found
    spans = spans_with_choices("unet")
    assert {("stem", "encoders_0_act2"), ("pool", "encoders_1_act2"), ("pool_1", "bottom_1_act2")} < spans
    assert not spans & {("mixes_0", "decoders_1_act2"), ("bottom_0_act2", "mixes_0")}


@pytest.mark.parametrize("name", sorted(TOYS))
def test_branches_share_no_nodes(name):
    for level in tree(name).levels():
        for unit in level.units:
            inside = [node for branch in unit.branches for u in branch.units for node in (*u.region, *u.nodes)]
            assert len(inside) == len(set(inside))
            assert set(inside) <= set(unit.region)


class Lonely(nn.Module):
    """Reads weights through a graph node, and computes something that nobody reads."""

    def __init__(self):
        super().__init__()
        self.shift, self.conv = nn.Parameter(torch.randn(1, 3, 11, 13)), nn.Conv2d(3, 3, 1)

    def forward(self, x, unused):
        return self.conv(x) + self.shift


def test_what_carries_no_data_is_left_out():
    gm = captured(Lonely(), image(), image(2))
    level = structure_tree(gm)
    names = {name for unit in level.units for name in (*unit.nodes, *unit.region)}
    assert "shift" not in names
    assert "unused" not in names
    assert {"conv", "add"} <= names


def test_padding_goes_with_the_convolution_after_it():
    assert tree("same_padded").cuts == ("x", "act1", "act2", "conv3", "output")


def test_dropout_and_lone_activations_have_a_place():
    body = nn.Sequential(nn.Dropout(), nn.Conv2d(5, 5, 1), nn.ReLU(), nn.Dropout(), nn.ReLU(), nn.BatchNorm2d(5))
    level = structure_tree(captured(Sandwich(body), image()))
    assert [unit.nodes for unit in level.units] == [
        ("stem", "body_0"),
        ("body_1", "body_2", "body_3"),
        ("body_4",),
        ("body_5", "end"),
        ("output",),
    ]


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_node_that_carries_data_stands_in_exactly_one_outer_unit(name):
    gm, _ = toy(name)
    level = structure_tree(gm)
    listed = [node for unit in level.units for node in (*unit.region, *unit.nodes)]
    assert sorted(listed) == sorted(node.name for node in gm.graph.nodes if node.op != "placeholder")


@pytest.mark.parametrize("name", sorted(TOYS))
def test_the_nodes_of_a_unit_stand_in_the_graphs_order(name):
    gm, _ = toy(name)
    order = [node.name for node in gm.graph.nodes]
    for level in structure_tree(gm).levels():
        listed = [order.index(node) for unit in level.units for node in (*unit.region, *unit.nodes)]
        assert listed == sorted(listed)


class LateSkip(nn.Module):
    """Runs its second branch first, so that a breadth-first order differs from the order of the program."""

    def __init__(self):
        super().__init__()
        self.deep, self.wide = straight(2, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        deep = self.deep(x)
        return deep + self.wide(x)


def test_order_is_the_programs_own_not_a_breadth_first_one():
    gm = captured(LateSkip(), image())
    assert structure_tree(gm).units[0].region == ("deep_0", "deep_1", "deep_2", "deep_3", "wide")


def test_the_graph_is_not_changed():
    gm = captured(Residual(), image(5))
    before = str(gm.graph)
    structure_tree(gm)
    assert str(gm.graph) == before
