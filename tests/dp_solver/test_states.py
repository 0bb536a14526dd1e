import copy
import pickle

import pytest

from depthcomp_errors import ProblemError
from dp_solver import Chain, Choice, Parallel, enumerate_plans, frontier, solve


def test_an_item_extends_only_plans_in_its_state() -> None:
    wide, narrow = Choice("wide", 1.0, 0.0, after="w"), Choice("narrow", 0.5, 0.1, after="n")
    on_wide, on_narrow = Choice("on wide", 2.0, 0.0, before="w"), Choice("on narrow", 0.7, 0.2, before="n")
    chain = Chain(2, {(0, 1): [wide, narrow], (1, 2): [on_wide, on_narrow]})
    front = frontier(chain)
    assert [front.plan(k) for k in range(len(front))] == [("narrow", "on narrow"), ("wide", "on wide")]
    assert sorted(keys for _, _, keys in enumerate_plans(chain)) == [("narrow", "on narrow"), ("wide", "on wide")]


def test_a_beaten_plan_is_kept_where_its_state_differs() -> None:
    beaten = Choice("beaten", 2.0, 1.0, after=1)
    spans = {(0, 1): [Choice("better", 1.0, 0.0), beaten], (1, 2): [Choice("reward", 0.0, -9.0, before=1)]}
    spans[1, 2].append(Choice("none", 0.0, 0.0))
    assert solve(Chain(2, spans), 5.0).keys == ("beaten", "reward")


def test_start_and_end_states() -> None:
    spans = {(0, 1): [Choice("from 1", 1.0, 0.0, 1, "x"), Choice("from None", 0.5, 0.0, None, "y")]}
    assert frontier(Chain(1, spans, start=1)).plan(0) == ("from 1",)
    assert frontier(Chain(1, spans)).plan(0) == ("from None",)
    both = {(0, 1): [Choice("x", 1.0, 0.0, after="x"), Choice("y", 0.5, 0.0, after="y")]}
    assert len(frontier(Chain(1, both))) == 1
    assert frontier(Chain(1, both, ends=["x"])).plan(0) == ("x",)
    assert frontier(Chain(0, {}, start="x", ends={"x"})).plan(0) == ()


def test_plans_of_all_end_states_compete_and_tie_as_if_they_were_one() -> None:
    spans = {(0, 1): [Choice("first", 1.0, 0.0, after="z"), Choice("second", 1.0, 0.0, after="a")]}
    assert frontier(Chain(1, spans)).plan(0) == ("first",)
    assert frontier(Chain(1, spans, ends=("a", "z"))).plan(0) == ("first",)


def test_a_region_has_states_outside_and_its_branches_their_own() -> None:
    branch = Chain(1, {(0, 1): [Choice("in", 1.0, 0.0, before="inner", after="left")]}, start="inner")
    region = Parallel(0.5, (branch, Chain(0, {})), before=1, after=2)
    chain = Chain(2, {(0, 1): [region], (1, 2): [Choice("after", 1.0, 0.0, before=2)]}, start=1)
    assert solve(chain, 9.0) == (solve(chain, 2.5))
    assert solve(chain, 2.5).keys == ("in", "after")


def test_equal_states_of_other_types_are_one_state() -> None:
    spans = {(0, 1): [Choice("a", 1.0, 0.0, after=1)], (1, 2): [Choice("b", 1.0, 0.0, before=True)]}
    assert frontier(Chain(2, spans)).plan(0) == ("a", "b")


def test_one_key_may_stand_between_different_states_only() -> None:
    keep = [Choice("keep", 1.0, 0.0, state, state) for state in (0, 1)]
    assert frontier(Chain(1, {(0, 1): keep}, start=1)).plan(0) == ("keep",)
    with pytest.raises(ProblemError, match=r"span \(0, 1\) holds key 'keep' twice from state 1 to 1; give each"):
        Chain(1, {(0, 1): [*keep, Choice("keep", 2.0, 0.0, 1, 1)]}, start=1)


def test_gap_between_states() -> None:
    spans = {(0, 1): [Choice("a", 1.0, 0.0, after="wide")], (1, 2): [Choice("b", 1.0, 0.0, before="narrow")]}
    fault = r"from cut 0 as far as cut 1 \(state 'wide'\), never to cut 2; .* at least one choice from that state"
    with pytest.raises(ProblemError, match=fault):
        Chain(2, spans)
    with pytest.raises(ProblemError, match=r"as far as cut 0 \(state 7\), never to cut 2"):
        Chain(2, spans, start=7)


def test_no_plan_in_an_end_state() -> None:
    spans = {(0, 1): [Choice("a", 1.0, 0.0, after="x"), Choice("b", 1.0, 0.0, after="y")]}
    with pytest.raises(ProblemError, match=r"no plan ends in a state of ends \(='z'\): plans end in 'x', 'y'; offer"):
        Chain(1, spans, ends=["z"])
    with pytest.raises(ProblemError, match=r"no plan ends in a state of ends \(=1\): plans end in None"):
        Chain(0, {}, ends=[1])


@pytest.mark.parametrize("ends", [(), "x", 1])
def test_unusable_ends(ends: object) -> None:
    with pytest.raises(ProblemError, match=r"ends \(=.*\) of a Chain must be a collection of at least one state"):
        Chain(0, {}, ends=ends)


def test_unhashable_states() -> None:
    with pytest.raises(ProblemError, match=r"state before \(=\[\]\) must be hashable"):
        Choice("k", 1.0, 0.0, before=[])
    with pytest.raises(ProblemError, match=r"state after \(=\{\}\) must be hashable"):
        Parallel(0.0, (Chain(0, {}),), after={})
    with pytest.raises(ProblemError, match=r"start state \(=\[1\]\) must be hashable"):
        Chain(0, {}, start=[1])
    with pytest.raises(ProblemError, match=r"end state \(=\[1\]\) must be hashable"):
        Chain(0, {}, ends=[[1]])


def test_a_chain_cannot_come_to_hold_itself() -> None:
    spans = {(0, 1): [Choice("a", 1.0, 0.0)]}
    chain = Chain(1, spans)
    spans[0, 1].append(Parallel(0.0, (chain,)))
    assert len(chain.spans[0, 1]) == 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        chain.spans[0, 1] = (Parallel(0.0, (chain,)),)
    with pytest.raises(AttributeError, match="cannot assign"):
        chain.spans = {(0, 1): (Parallel(0.0, (chain,)),)}


def test_chains_compare_copy_and_pickle() -> None:
    chain = Chain(1, {(0, 1): [Choice("a", 1.0, 0.0, 1, 2)]}, start=1, ends=[2])
    assert chain == Chain(1, {(0, 1): (Choice("a", 1.0, 0.0, 1, 2),)}, start=1, ends={2})
    assert chain != Chain(1, {(0, 1): [Choice("a", 1.0, 0.0, 1, 2)]}, start=1)
    assert pickle.loads(pickle.dumps(chain)) == copy.deepcopy(chain) == chain  # noqa: S301 -- our own bytes


def test_widths_at_cuts() -> None:
    """Halving the channels behind a convolution makes it and what reads it cheaper; a sum needs all of them."""
    full, half = 64, 32

    def convolution(name: str, c_in: int, c_out: int) -> Choice:
        pruned = (full - c_out) / full
        return Choice((name, c_in, c_out), 4.0 * c_in * c_out / full**2, 0.1 * pruned, before=c_in, after=c_out)

    widths = [(a, b) for a in (full, half) for b in (full, half)]
    spans = {(i, i + 1): [convolution(f"conv{i}", *width) for width in widths] for i in range(3)}
    spans[0, 2] = [Choice(("merge", full, full), 5.0, 0.08, before=full, after=full)]
    network = Chain(3, spans, start=full, ends=[full])
    front = frontier(network)
    for k in range(len(front)):
        at = full
        for _, c_in, c_out in front.plan(k):
            assert c_in == at
            at = c_out
        assert at == full
    assert front.plan(-1) == (("conv0", 64, 64), ("conv1", 64, 64), ("conv2", 64, 64))
    assert front.plan(0) == (("conv0", 64, 32), ("conv1", 32, 32), ("conv2", 32, 64))
    assert front.costs[0] == 2.0 + 1.0 + 2.0
    assert solve(network, 8.0).keys == (("conv0", 64, 32), ("conv1", 32, 64), ("conv2", 64, 64))
