"""The solver's problem: a tree of chains whose spans hold priced choices.

A chain has cuts 0..length. A span (i, j] lies between two cuts and can be realised in several ways, its
items: a `Choice` is one priced way; a `Parallel` is a region of branches, each a chain of its own, that all
run and then join. A plan crosses the chain from cut 0 to its last cut with one item for each span that it
steps over. Every constructor here checks its arguments, so a problem that exists can be solved.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from depthcomp_errors import ProblemError

__all__ = ["Chain", "Choice", "Parallel"]

LARGEST = 1e300  # 1e8 such numbers still add up to a finite float64


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to realise a span.

    Attributes:
        key: the caller's name for it, returned in plans and otherwise not looked at.
        cost: latency in ms, at least 0.
        loss: expected loss increase, lower is better, may be negative.

    Raises:
        ProblemError: the key is not hashable, a number is not finite, or the cost is negative.

    Example:
        >>> Choice("merge 0..3", 0.8, 0.05).cost
        0.8
    """

    key: Hashable
    cost: float
    loss: float

    def __post_init__(self) -> None:
        _require_hashable(self.key)
        object.__setattr__(self, "cost", _cost(f"cost of choice {self.key!r}", self.cost))
        object.__setattr__(self, "loss", _number(f"loss of choice {self.key!r}", self.loss))


@dataclass(frozen=True, slots=True)
class Parallel:
    """A region of branches that all run: its cost and loss are sums over the branches.

    Attributes:
        join_cost: latency in ms of what joins the branches (an add, a concat), at least 0.
        branches: one chain a branch, at least one; a skip connection is `Chain(0, {})`.

    Raises:
        ProblemError: there is no branch, a branch is not a `Chain`, or the join cost is negative or not
        finite.

    Example:
        >>> body = Chain(1, {(0, 1): [Choice("keep", 1.0, 0.0)]})
        >>> len(Parallel(0.1, (body, Chain(0, {}))).branches)
        2
    """

    join_cost: float
    branches: tuple[Chain, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "join_cost", _cost("join_cost of a Parallel", self.join_cost))
        object.__setattr__(self, "branches", _branches(self.branches))


@dataclass(frozen=True, slots=True)
class Chain:
    """Cuts 0..length and the items of the spans between them.

    The spans are copied, sorted by end cut and then by start cut. An empty span is one that cannot be used.
    Cuts that no plan passes are allowed as long as some plan crosses the chain.

    Attributes:
        length: number of the last cut; 0 is the identity, with one plan of no keys, cost 0 and loss 0.
        spans: (i, j) with 0 <= i < j <= length -> the items of span (i, j], in order of preference on ties.

    Raises:
        ProblemError: a span lies outside the chain, holds a thing that is no item or one key twice, or no
            path of spans leads from cut 0 to cut `length`.

    Example:
        >>> keep, merge = Choice("keep", 1.0, 0.0), Choice("merge", 0.5, 0.2)
        >>> list(Chain(2, {(1, 2): [keep], (0, 2): [merge], (0, 1): [keep]}).spans)
        [(0, 1), (0, 2), (1, 2)]
    """

    length: int
    spans: Mapping[tuple[int, int], Sequence[Choice | Parallel]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", _length(self.length))
        object.__setattr__(self, "spans", _spans(self.length, self.spans))
        _require_path(self.length, self.spans)


Item: TypeAlias = Choice | Parallel
Span: TypeAlias = tuple[int, int]


def _require_hashable(key: object) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise ProblemError(f"key (={key!r}) of a choice must be hashable; use a tuple or a string") from error


def real_or_nan(value: object) -> float:
    """Returns `value` as a float, NaN if it is no real number, infinity if it is too large for a float.

    Example:
        >>> real_or_nan(2), real_or_nan("2"), real_or_nan(10**400)
        (2.0, nan, inf)
    """
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


def _number(name: str, value: object) -> float:
    number = real_or_nan(value)
    if not abs(number) <= LARGEST:  # NaN compares false
        raise ProblemError(
            f"{name} (={value!r}) must be a finite number of magnitude up to {LARGEST:g}; "
            "correct it or leave the choice out"
        )
    return number


def _cost(name: str, value: object) -> float:
    cost = _number(name, value)
    if cost < 0:
        raise ProblemError(f"{name} (={cost}) must be at least 0 ms; correct it")
    return cost


def _branches(branches: object) -> tuple[Chain, ...]:
    if not isinstance(branches, Sequence) or not branches:
        given = reprlib.repr(branches)
        raise ProblemError(f"branches (={given}) of a Parallel must be a tuple of at least one Chain")
    for number, branch in enumerate(branches):
        if not isinstance(branch, Chain):
            given = reprlib.repr(branch)
            raise ProblemError(f"branch {number} (={given}) of a Parallel must be a Chain; wrap it in one")
    return tuple(branches)


def _length(length: object) -> int:
    if not hasattr(length, "__index__") or operator.index(length) < 0:
        raise ProblemError(f"length (={length!r}) of a Chain must be an integer of at least 0")
    return operator.index(length)


def _spans(length: int, spans: object) -> dict[Span, tuple[Item, ...]]:
    if not isinstance(spans, Mapping):
        given = reprlib.repr(spans)
        raise ProblemError(f"spans (={given}) of a Chain must map (i, j) to the items of span (i, j]")
    checked = {_span(span, length): items for span, items in spans.items()}
    return {span: _items(span, checked[span]) for span in sorted(checked, key=lambda span: span[::-1])}


def _span(span: object, length: int) -> Span:
    if isinstance(span, tuple) and len(span) == 2 and all(hasattr(cut, "__index__") for cut in span):
        start, end = map(operator.index, span)
        if 0 <= start < end <= length:
            return start, end
    raise ProblemError(f"span {span!r} must be a pair (i, j) of cuts with 0 <= i < j <= length (={length})")


def _items(span: Span, items: object) -> tuple[Item, ...]:
    if not isinstance(items, Sequence) or not all(isinstance(item, Choice | Parallel) for item in items):
        given = reprlib.repr(items)
        raise ProblemError(f"span {span} must hold a sequence of Choice and Parallel items, not {given}")
    _require_distinct(span, [item.key for item in items if isinstance(item, Choice)])
    return tuple(items)


def _require_distinct(span: Span, keys: list[Hashable]) -> None:
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            raise ProblemError(f"span {span} holds key {key!r} twice; give each choice of a span its own key")
        seen.add(key)


def _require_path(length: int, spans: Mapping[Span, Sequence[Item]]) -> None:
    reached = {0}
    for (start, end), items in spans.items():  # sorted by end cut: whether `start` is reached is known by now
        if items and start in reached:
            reached.add(end)
    if length not in reached:
        raise ProblemError(
            f"no plan crosses the chain: its spans lead from cut 0 as far as cut {max(reached)}, never to "
            f"cut {length}; give a span that closes the gap at least one choice"
        )
