"""Chains of cuts against a brute-force search for closed parts."""

import itertools
import time

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_passes.regions import cut_chains

pytestmark = pytest.mark.whole


@st.composite
def flows(draw):
    """A graph from "0" to "last" whose every node lies on a path between the two."""
    size = draw(st.integers(3, 12))
    names = [*map(str, range(size - 1)), "last"]
    flow = nx.DiGraph()
    for place in range(1, size):
        reads = draw(st.sets(st.integers(max(0, place - 4), place - 1), min_size=1, max_size=3))
        flow.add_edges_from((names[source], names[place]) for source in reads)
    unread = [name for name in names[:-1] if not flow.out_degree(name)]
    flow.add_edges_from((name, "last") for name in unread)
    return flow


def inside(flow, entry, exit_):
    """Return the nodes strictly between two nodes."""
    return nx.descendants(flow, entry) & nx.ancestors(flow, exit_)


def is_closed(flow, entry, exit_):
    inner = inside(flow, entry, exit_)
    reads = all(source in inner | {entry} for name in {*inner, exit_} for source in flow.predecessors(name))
    return reads and all(user in inner | {exit_} for name in inner for user in flow.successors(name))


def closed_parts(flow):
    """The oracle: every pair of nodes with a closed part between them, but for the graph's exit."""
    pairs = itertools.permutations(set(flow) - {"last"}, 2)
    return [(a, b) for a, b in pairs if nx.has_path(flow, a, b) and is_closed(flow, a, b)]


@given(flows())
@settings(deadline=None, max_examples=300)
def test_any_two_cuts_of_a_chain_have_a_closed_part_between_them(flow):
    for chain in cut_chains(flow, "0", "last"):
        assert len(chain.cuts) > 1
        for entry, exit_ in itertools.combinations(chain.cuts, 2):
            assert is_closed(flow, entry, exit_)
        ends = chain.cuts[0], chain.cuts[-1]
        assert chain.nodes == inside(flow, *ends) | set(ends)


@given(flows())
@settings(deadline=None, max_examples=300)
def test_every_closed_part_lies_in_one_chain(flow):
    chains = cut_chains(flow, "0", "last")
    for entry, exit_ in closed_parts(flow):
        (chain,) = [chain for chain in chains if exit_ in chain.nodes - {chain.cuts[0]}]
        if exit_ in chain.cuts:
            assert entry in chain.cuts
        else:
            after = next(cut for cut in chain.cuts if nx.has_path(flow, exit_, cut))
            assert entry in {*inside(flow, chain.cuts[0], after), chain.cuts[0]}


@given(flows())
@settings(deadline=None, max_examples=300)
def test_chains_share_no_nodes_but_first_cuts(flow):
    listed = [name for chain in cut_chains(flow, "0", "last") for name in chain.nodes - {chain.cuts[0]}]
    assert len(listed) == len(set(listed))
    assert "last" not in listed


def test_the_graph_is_not_changed():
    flow = nx.DiGraph(["ab", "bc", "ac", "bd", "cd"])
    before = list(flow.edges)
    cut_chains(flow, "a", "d")
    assert list(flow.edges) == before


def ladder(rungs):
    """Return a trunk of residual blocks, each tensor of which the exit also reads, as feature pyramids do."""
    flow = nx.DiGraph()
    for rung in range(rungs):
        tensor, inner, after = f"t{rung}", f"inner{rung}", f"t{rung + 1}"
        flow.add_edges_from([(tensor, inner), (inner, after), (tensor, after), (after, "exit")])
    return flow


def dense(layers):
    """Return layers that all read every tensor before them."""
    return nx.DiGraph((f"t{a}", f"t{b}") for a, b in itertools.combinations(range(layers), 2))


@pytest.mark.parametrize(
    ("flow", "exit_", "count"), [(ladder(1500), "exit", 1500), (dense(150), "t149", 1)], ids=["ladder", "dense"]
)
def test_thousands_of_edges_take_seconds_at_most(flow, exit_, count):
    start = time.process_time()
    assert len(cut_chains(flow, "t0", exit_)) == count
    assert time.process_time() - start < 5
