import math
from fractions import Fraction

import numpy as np
import pytest

from depthcomp_errors import ProblemError
from dp_solver import Chain, Choice, Parallel

KEEP = Choice("keep", 1.0, 0.0)
IDENTITY = Chain(0, {})


def test_positional_order() -> None:
    assert Choice("k", 1.0, -2.0) == Choice(key="k", cost=1.0, loss=-2.0)
    assert Parallel(0.5, (IDENTITY,)) == Parallel(join_cost=0.5, branches=(IDENTITY,))
    assert Chain(1, {(0, 1): [KEEP]}) == Chain(length=1, spans={(0, 1): (KEEP,)})


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        KEEP.cost = 2.0


def test_numbers_of_every_real_type_become_floats() -> None:
    choice = Choice("k", np.float32(0.5), Fraction(1, 4))
    assert (type(choice.cost), type(choice.loss)) == (float, float)
    assert (choice.cost, choice.loss) == (0.5, 0.25)


def test_numpy_cuts_become_ints() -> None:
    chain = Chain(np.int64(1), {(np.int64(0), np.int64(1)): [KEEP]})
    assert {type(cut) for span in chain.spans for cut in (*span, chain.length)} == {int}


def test_spans_are_copied_and_sorted() -> None:
    spans = {(1, 2): [KEEP], (0, 2): [KEEP], (0, 1): [KEEP]}
    chain = Chain(2, spans)
    spans.clear()
    assert list(chain.spans) == [(0, 1), (0, 2), (1, 2)]


def test_lists_of_branches_become_tuples() -> None:
    assert Parallel(0.0, [IDENTITY, IDENTITY]).branches == (IDENTITY, IDENTITY)


def test_cuts_that_no_span_reaches_are_legal_where_a_plan_crosses() -> None:
    chain = Chain(3, {(0, 3): [KEEP], (1, 2): [KEEP], (0, 2): []})
    assert len(chain.spans) == 3


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, 2e300, pytest.param(10**400, id="huge")),
        *(None, "1.0", 1j, True, np.True_, np.float32(np.inf), np.array(1.0)),
    ],
)
def test_unusable_numbers(value: object) -> None:
    with pytest.raises(ProblemError, match=r"cost of choice 'k' \(=.*\) must be a finite number"):
        Choice("k", value, 0.0)
    with pytest.raises(ProblemError, match=r"loss of choice 'k' \(=.*\) must be a finite number"):
        Choice("k", 1.0, value)
    with pytest.raises(ProblemError, match=r"join_cost of a Parallel \(=.*\) must be a finite number"):
        Parallel(value, (IDENTITY,))


def test_negative_costs() -> None:
    with pytest.raises(ProblemError, match=r"cost of choice 'k' \(=-1.0\) must be at least 0 ms"):
        Choice("k", -1.0, 0.0)
    with pytest.raises(ProblemError, match=r"join_cost of a Parallel \(=-0.5\) must be at least 0 ms"):
        Parallel(-0.5, (IDENTITY,))


def test_unhashable_key() -> None:
    with pytest.raises(ProblemError, match=r"key of a choice \(=\['k'\]\) must be hashable"):
        Choice(["k"], 1.0, 0.0)


@pytest.mark.parametrize("branches", [(), IDENTITY, None])
def test_branches_that_are_no_tuple_of_chains(branches: object) -> None:
    with pytest.raises(ProblemError, match="must be a tuple of at least one Chain"):
        Parallel(0.0, branches)


def test_branch_that_is_no_chain() -> None:
    with pytest.raises(ProblemError, match=r"branch 1 \(=Choice\(.*\) of a Parallel must be a Chain"):
        Parallel(0.0, (IDENTITY, KEEP))


@pytest.mark.parametrize("length", [-1, 1.0, None, "1", np.array([1, 1])])
def test_unusable_length(length: object) -> None:
    with pytest.raises(ProblemError, match="of a Chain must be an integer of at least 0"):
        Chain(length, {})


@pytest.mark.parametrize("span", [(0, 3), (-1, 1), (1, 1), (2, 1), (0, 1, 2), (0.0, 1.0), "01", 1])
def test_span_out_of_range(span: object) -> None:
    with pytest.raises(ProblemError, match=r"must be a pair \(i, j\) of cuts with .* length \(=2\)"):
        Chain(2, {(0, 2): [KEEP], span: [KEEP]})


def test_spans_that_are_no_mapping() -> None:
    with pytest.raises(ProblemError, match=r"spans \(=\[\]\) of a Chain must map \(i, j\)"):
        Chain(0, [])


@pytest.mark.parametrize("items", [KEEP, [KEEP, "drop"], None])
def test_items_that_are_no_choices(items: object) -> None:
    with pytest.raises(ProblemError, match=r"span \(0, 1\) must hold a sequence of Choice"):
        Chain(1, {(0, 1): items})


def test_duplicate_key_in_a_span() -> None:
    with pytest.raises(ProblemError, match=r"span \(0, 1\) holds key 'keep' twice"):
        Chain(1, {(0, 1): [KEEP, Choice("keep", 2.0, 1.0)]})


@pytest.mark.parametrize(
    ("spans", "last"),
    [
        ({}, 0),
        ({(0, 1): [KEEP], (2, 3): [KEEP]}, 1),
        ({(0, 2): [KEEP], (1, 3): [KEEP]}, 2),
        ({(0, 2): [KEEP], (2, 3): []}, 2),
    ],
)
def test_gap(spans: dict[tuple[int, int], list[Choice]], last: int) -> None:
    with pytest.raises(ProblemError, match=f"from cut 0 as far as cut {last}, never to cut 3"):
        Chain(3, spans)


@pytest.mark.parametrize("changes", [-1, 0.5, "2", 2**32 + 1, 10**400, np.array([1, 1])])
def test_unusable_changes(changes: object) -> None:
    with pytest.raises(ProblemError, match=r"changes \(=.*\) of choice 'k' must be an integer from 0 to 4294967296; "):
        Choice("k", 1.0, 0.0, changes=changes)
