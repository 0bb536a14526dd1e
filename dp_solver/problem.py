"""The solver's problem: a tree of chains whose spans hold priced choices.

A chain has cuts 0..length. A span (i, j] lies between two cuts and can be realised in several ways, its
items: a `Choice` is one priced way; a `Parallel` is a region of branches, each a chain of its own, that all
run and then join. A plan crosses the chain from cut 0 to its last cut with one item for each span that it
steps over. Every constructor checks its arguments, so every problem can be solved. It also copies them, and nobody can
change the copies, so no chain can come to hold itself.

States. A partial plan at a cut may stand in a *state*: an activation is there or is not, the tensor has all its
channels or half of them. An item extends only the partial plans whose state is its `before`, and leaves them in its
`after`. A state is any hashable value, compared by equality; a problem without states has None everywhere.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from depthcomp_errors import ProblemError
from dp_solver.quantities import as_cost, as_integer, as_number

__all__ = ["Chain", "Choice", "Parallel", "State", "require_chain"]

State: TypeAlias = Hashable
MOST_CHANGES = 2**32  # sums of two million such counts are exact in float64


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to realise a span.

    Attributes:
        key: the caller's name for it, which plans return. Its meaning is the caller's; only None means that the span
            stays as it is.
        cost: latency in ms, at least 0.
        loss: expected loss increase, lower is better, may be negative.
        before: the state that it needs at the span's start.
        after: the state that it leaves at the span's end.
        changes: number of changes that it makes, which breaks ties; None counts as 1, or as 0 for the key None.

    Raises:
        ProblemError: the key or a state is not hashable, a number is not finite, the cost is negative, or `changes` is
            no integer from 0 to 2**32.

    Example:
        >>> Choice("merge 0..3", 0.8, 0.05).cost
        0.8
    """

    key: Hashable
    cost: float
    loss: float
    before: State = None
    after: State = None
    changes: int | None = None

    def __post_init__(self) -> None:
        _require_hashable("key of a choice", self.key)
        _require_hashable("state before", self.before)
        _require_hashable("state after", self.after)
        object.__setattr__(self, "cost", as_cost(self.cost, "cost of choice {!r}", self.key))
        object.__setattr__(self, "loss", as_number(self.loss, "loss of choice {!r}", self.key))
        object.__setattr__(self, "changes", _changes(self.changes, self.key))

    @property
    def change_count(self) -> int:
        """Number of changes that it counts as.

        Example:
            >>> Choice("merge", 0.8, 0.1).change_count, Choice("merge", 0.8, 0.1, changes=3).change_count
            (1, 3)
        """
        return int(self.key is not None) if self.changes is None else self.changes


@dataclass(frozen=True, slots=True)
class Parallel:
    """A region of branches that all run: its cost and loss are sums over the branches.

    Attributes:
        join_cost: latency in ms of what joins the branches (an add, a concat), at least 0.
        branches: one chain a branch, at least one; a skip connection is `Chain(0, {})`. Each begins in its own start
            state, whatever the state around it.
        before: the state that the region needs at the span's start.
        after: the state that it leaves at the span's end.

    Raises:
        ProblemError: there is no branch, a branch is not a `Chain`, a state is not hashable, or the join cost is
            negative or not finite.

    Example:
        >>> body = Chain(1, {(0, 1): [Choice("keep", 1.0, 0.0)]})
        >>> len(Parallel(0.1, (body, Chain(0, {}))).branches)
        2
    """

    join_cost: float
    branches: tuple[Chain, ...]
    before: State = None
    after: State = None

    def __post_init__(self) -> None:
        _require_hashable("state before", self.before)
        _require_hashable("state after", self.after)
        object.__setattr__(self, "join_cost", as_cost(self.join_cost, "join_cost of a Parallel"))
        object.__setattr__(self, "branches", _branches(self.branches))


@dataclass(frozen=True, slots=True)
class Chain:
    """Cuts 0..length and the items of the spans between them.

    The spans are copied, sorted by end cut and then by start cut. An empty span is one that cannot be used.
    Cuts and states that no plan passes are allowed as long as some plan crosses the chain.

    Attributes:
        length: number of the last cut; 0 is the identity, with one plan of no keys, cost 0 and loss 0.
        spans: (i, j) with 0 <= i < j <= length -> the items of span (i, j], in order of preference on ties; read-only.
        start: the state at cut 0.
        ends: the states that a plan may end in, at least one; None allows all.

    Raises:
        ProblemError: a span lies outside the chain, holds a thing that is no item or one key twice between the same
            states, or no plan leads from cut 0 in state `start` to cut `length` in one of the states `ends`.

    Example:
        >>> keep, merge = Choice("keep", 1.0, 0.0), Choice("merge", 0.5, 0.2)
        >>> list(Chain(2, {(1, 2): [keep], (0, 2): [merge], (0, 1): [keep]}).spans)
        [(0, 1), (0, 2), (1, 2)]
        >>> halve, narrow = Choice("halve", 0.6, 0.1, after="half"), Choice("keep", 0.3, 0.0, before="half")
        >>> len(Chain(2, {(0, 1): [keep, halve], (1, 2): [keep, narrow]}).spans[1, 2])
        2
    """

    length: int
    spans: Mapping[tuple[int, int], Sequence[Choice | Parallel]]
    start: State = None
    ends: Collection[State] | None = None

    def __post_init__(self) -> None:
        _require_hashable("start state", self.start)
        object.__setattr__(self, "length", _length(self.length))
        object.__setattr__(self, "spans", MappingProxyType(_spans(self.length, self.spans)))
        object.__setattr__(self, "ends", _ends(self.ends))
        _require_plan(self)

    def __reduce__(self) -> tuple[type[Chain], tuple[object, ...]]:
        return Chain, (self.length, dict(self.spans), self.start, self.ends)  # a read-only mapping does not pickle

    def accepts(self, cut: int, state: State) -> bool:
        """Return whether a plan may stand at `cut` in `state`; only the last cut restricts states.

        Example:
            >>> chain = Chain(1, {(0, 1): [Choice("keep", 1.0, 0.0, after="full")]}, ends=["full"])
            >>> chain.accepts(0, "half"), chain.accepts(1, "half")
            (True, False)
        """
        return cut < self.length or self.ends is None or state in self.ends


Item: TypeAlias = Choice | Parallel
Span: TypeAlias = tuple[int, int]


def require_chain(problem: object) -> None:
    """Raise ProblemError where a problem is no `Chain`."""
    if not isinstance(problem, Chain):
        given = reprlib.repr(problem)
        raise ProblemError(f"the problem (={given}) must be a Chain; make one of its spans: Chain(length, spans)")


def _require_hashable(name: str, value: object) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise ProblemError(f"{name} (={value!r}) must be hashable; use a tuple or a string") from error


def _changes(changes: object, key: Hashable) -> int | None:
    if changes is None:
        return None
    number = as_integer(changes)
    if number is None or not 0 <= number <= MOST_CHANGES:
        given = reprlib.repr(changes)
        raise ProblemError(
            f"changes (={given}) of choice {key!r} must be an integer from 0 to {MOST_CHANGES}; correct it or "
            "leave it out"
        )
    return number


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
    number = as_integer(length)
    if number is None or number < 0:
        raise ProblemError(f"length (={length!r}) of a Chain must be an integer of at least 0; count its cuts from 0")
    return number


def _spans(length: int, spans: object) -> dict[Span, tuple[Item, ...]]:
    if not isinstance(spans, Mapping):
        given = reprlib.repr(spans)
        raise ProblemError(f"spans (={given}) of a Chain must map (i, j) to the items of span (i, j]")
    checked = {_span(span, length): items for span, items in spans.items()}
    return {span: _items(span, checked[span]) for span in sorted(checked, key=lambda span: span[::-1])}


def _span(span: object, length: int) -> Span:
    if isinstance(span, tuple) and len(span) == 2:
        start, end = map(as_integer, span)
        if start is not None and end is not None and 0 <= start < end <= length:
            return start, end
    raise ProblemError(f"span {span!r} must be a pair (i, j) of cuts with 0 <= i < j <= length (={length})")


def _items(span: Span, items: object) -> tuple[Item, ...]:
    if not isinstance(items, Sequence) or not all(isinstance(item, Choice | Parallel) for item in items):
        given = reprlib.repr(items)
        raise ProblemError(f"span {span} must hold a sequence of Choice and Parallel items, not {given}")
    _require_distinct(span, [item for item in items if isinstance(item, Choice)])
    return tuple(items)


def _require_distinct(span: Span, choices: list[Choice]) -> None:
    seen: set[tuple[Hashable, State, State]] = set()
    for choice in choices:
        identity = (choice.key, choice.before, choice.after)
        if identity in seen:
            between = "" if identity[1:] == (None, None) else f" from state {choice.before!r} to {choice.after!r}"
            raise ProblemError(f"span {span} holds key {choice.key!r} twice{between}; give each choice its own key")
        seen.add(identity)


def _ends(ends: object) -> frozenset[State] | None:
    if ends is None:
        return None
    if isinstance(ends, str) or not isinstance(ends, Collection) or len(ends) == 0:
        raise ProblemError(f"ends (={ends!r}) of a Chain must be a collection of at least one state, or None for all")
    for state in ends:
        _require_hashable("end state", state)
    return frozenset(ends)


def _require_plan(chain: Chain) -> None:
    reached: dict[int, dict[State, None]] = {0: {chain.start: None}}  # states in the order in which they are found
    for (start, end), items in chain.spans.items():  # sorted by end cut: what is reached at `start` is known by now
        before = reached.get(start, {})
        for item in items:
            if item.before in before:
                reached.setdefault(end, {})[item.after] = None
    last = max(reached)
    if last == chain.length and any(chain.accepts(last, state) for state in reached[last]):
        return
    if last == chain.length:
        found = ", ".join(map(repr, reached[last]))
        raise ProblemError(
            f"no plan ends in a state of ends (={_listed(chain)}): plans end in {found}; offer one that does"
        )
    states = "" if set(reached[last]) == {None} else f" (state {' or '.join(map(repr, reached[last]))})"
    raise ProblemError(
        f"no plan crosses the chain: its spans lead from cut 0 as far as cut {last}{states}, never to "
        f"cut {chain.length}; give a span that closes the gap at least one choice{' from that state' if states else ''}"
    )


def _listed(chain: Chain) -> str:
    return ", ".join(sorted(map(repr, chain.ends or ())))
