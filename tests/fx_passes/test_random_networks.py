"""Random networks: any plan merges exactly, and what counts as a span agrees with an independent judge."""

import copy
import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from convolution_judge import is_convolution, is_convolution_to_the_border
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import is_activation, networks
from signal_nets import as_signals, signals_of
from torch import fx, nn
from toy_nets import largest_error, outputs

from fx_passes import (
    CapturedNetwork,
    SpanLimits,
    capture,
    enumerate_spans,
    free_merges,
    linearize,
    merge,
    random_plan,
    structure_tree,
)
from fx_passes.module_paths import module_path
from fx_passes.operators import called_module, image_shape
from fx_passes.walker import SpanWalker

pytestmark = pytest.mark.whole

SAME = 1e-9  # of the largest value, in float64
GENEROUS = SpanLimits(longest_span=4, largest_kernel=25, largest_mac_growth=1e9)
LARGEST_JUDGED = 40  # kernels beyond this would reach the border of the judge's image
SEEDS = st.integers(0, 2**16)


def examples(count):
    """Run a property on `count` networks, the same ones every time."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=health, database=None)


def merges_exactly(drawn, seed):
    net, x = drawn
    gm = capture(net, x)
    plan = random_plan(gm, np.random.default_rng(seed), GENEROUS)
    linearized = linearize(gm, plan)
    merged = merge(linearized, plan)
    wanted = outputs(linearized, x)
    assert largest_error(outputs(merged, x), wanted) < SAME
    assert [y.shape for y in wanted] == [y.shape for y in outputs(gm, x)]


def free_merges_change_nothing(drawn):
    net, x = drawn
    gm = capture(net, x)
    plan = free_merges(gm)
    assert largest_error(outputs(merge(linearize(gm, plan), plan), x), outputs(gm, x)) < SAME


@given(networks())
@examples(30)
def test_free_merges_of_any_network_change_nothing(drawn):
    free_merges_change_nothing(drawn)


@pytest.mark.slow
@given(networks())
@examples(1000)
def test_free_merges_of_a_thousand_networks_change_nothing(drawn):
    free_merges_change_nothing(drawn)


@given(networks(), SEEDS)
@examples(200)
def test_any_plan_for_any_network_merges_exactly(drawn, seed):
    merges_exactly(drawn, seed)


def signals(drawn):
    net, x = drawn
    return as_signals(copy.deepcopy(net)).double().eval(), signals_of(x)


@given(networks().map(signals))
@examples(15)
def test_free_merges_of_any_network_of_signals_change_nothing(drawn):
    free_merges_change_nothing(drawn)


@given(networks().map(signals), SEEDS)
@examples(60)
def test_any_plan_for_any_network_of_signals_merges_exactly(drawn, seed):
    merges_exactly(drawn, seed)


@given(networks())
@examples(20)
def test_the_spans_of_a_network_are_spans_of_its_twin_for_signals_too(drawn):
    image, signal = capture(*drawn), capture(*signals(drawn))
    ours, theirs = ([span for span in every_span(gm) if span.piece is not None] for gm in (image, signal))
    expected = {(span.entry, span.exit) for span in ours if has_pixels(image, span)}
    assert expected <= {(span.entry, span.exit) for span in theirs}


def has_pixels(gm, span):
    """Say whether a span has a layer that tells signals from rows of features; arithmetic alone does not."""
    layers = [called_module(gm, node) for node in gm.graph.nodes if node.name in span.nodes]
    return any(isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d)) for layer in layers)


@pytest.mark.slow
@given(networks().map(signals), SEEDS)
@examples(1000)
def test_any_plan_for_any_of_a_thousand_networks_of_signals_merges_exactly(drawn, seed):
    merges_exactly(drawn, seed)


@pytest.mark.slow
@given(networks(), SEEDS)
@examples(2000)
def test_any_plan_for_any_of_two_thousand_networks_merges_exactly(drawn, seed):
    merges_exactly(drawn, seed)


def flow_of(gm):
    """Return who reads whose tensor; the network's own constants are everywhere and leave no trace in it."""
    flow = nx.DiGraph()
    nodes = [node for node in gm.graph.nodes if node.op != "get_attr"]
    flow.add_nodes_from(node.name for node in nodes)
    flow.add_edges_from((source.name, node.name) for node in nodes for source in readings(node))
    return flow


def readings(node):
    """Return the nodes that a node reads, the network's own constants left out."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def between(flow, entry, exit_):
    """Return the nodes on paths from `entry` (excluded) to `exit_` (included)."""
    return (nx.descendants(flow, entry) & nx.ancestors(flow, exit_)) | {exit_}


def is_closed(flow, entry, exit_):
    """Say by reachability whether what stands between two tensors reads only the one and gives only the other."""
    inner = between(flow, entry, exit_)
    reads = all(source in inner | {entry} for name in inner for source in flow.predecessors(name))
    return reads and all(user in inner for name in inner - {exit_} for user in flow.successors(name))


def run_between(gm, entry, names):
    """Return the function that some nodes of a graph compute from one tensor, their activations left out."""

    def function(x):
        values = {entry: x, **constants}
        for node in gm.graph.nodes:
            if node.name in names:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: values[read.name])
                module = called_module(gm, node)
                if is_activation(module) or isinstance(module, nn.Dropout):
                    values[node.name] = args[0]
                else:
                    values[node.name] = compute(module, node, args, kwargs)
        with torch.no_grad():
            return values[max(names, key=order.__getitem__)]

    order = {node.name: place for place, node in enumerate(gm.graph.nodes)}
    constants = {node.name: dict(gm.named_parameters())[node.target] for node in gm.graph.find_nodes(op="get_attr")}
    return torch.no_grad()(function)


def is_convolution_alone(gm, node):
    """Say whether what a node computes of the one tensor that it reads is a convolution."""
    (source,) = readings(node)
    return is_convolution_to_the_border(run_between(gm, source.name, {node.name}), image_shape(source)[1])


def compute(module, node, args, kwargs):
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return (module or node.target)(*args, **kwargs)


def every_span(gm):
    """Return all spans of a graph, with those that concern no convolution and are not listed."""
    network = CapturedNetwork(gm)
    walker = SpanWalker(network, GENEROUS)
    return [span for level in network.levels for span in walker.spans(level)]


def is_layer(module):
    return isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.AvgPool2d)


def agrees_with_the_judge(drawn):
    net, x = drawn
    gm = capture(net, x)
    flow, nodes = flow_of(gm), {node.name: node for node in gm.graph.nodes}
    listed = {(span.entry, span.exit) for span in enumerate_spans(gm, GENEROUS)}
    for span in every_span(gm):
        shape = None if span.entry not in nodes else image_shape(nodes[span.entry])
        if shape is None or "output" in (span.entry, span.exit):
            continue
        whole = run_between(gm, span.entry, between(flow, span.entry, span.exit))
        if span.piece is not None:
            assert is_closed(flow, span.entry, span.exit), span
            assert max(span.piece.operator.kernel) > LARGEST_JUDGED or is_convolution(whole, shape[1:]), span
        elif is_closed(flow, span.entry, span.exit) and is_convolution(whole, shape[1:]):
            place = span.refusal.partition(":")[0]
            named = [nodes[name] for name in span.nodes if module_path(nodes[name]) == place]
            assert not all(is_convolution_alone(gm, node) for node in named), span  # then one operator must be none
        layers = any(is_layer(called_module(gm, nodes[name])) for name in span.nodes)
        assert (span.entry, span.exit) in listed or not layers, span


@given(networks())
@examples(30)
def test_spans_are_what_an_independent_judge_takes_for_convolutions(drawn):
    agrees_with_the_judge(drawn)


@pytest.mark.slow
@given(networks())
@examples(1000)
def test_spans_of_a_thousand_networks_are_what_an_independent_judge_takes_for_convolutions(drawn):
    agrees_with_the_judge(drawn)


@given(networks())
@examples(60)
def test_any_two_cuts_with_a_closed_part_between_them_belong_to_one_level(drawn):
    net, x = drawn
    gm = capture(net, x)
    flow, levels = flow_of(gm), list(structure_tree(gm).levels())
    together = {pair for level in levels for pair in itertools.combinations([c for c in level.cuts if c in flow], 2)}
    cuts = sorted({name for pair in together for name in pair})
    for entry, exit_ in itertools.permutations(cuts, 2):
        closed = nx.has_path(flow, entry, exit_) and is_closed(flow, entry, exit_)
        assert ((entry, exit_) in together) == closed, (entry, exit_)
