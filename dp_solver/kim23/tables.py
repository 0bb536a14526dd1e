"""Tables of the two-stage program before it is solved: joined by key, T_opt, I_ext and normalisation.

T[i, j] is a latency in ms and I[i, j, a, b] an importance; `dp_solver.kim23.two_stage` explains both.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias

from depthcomp_errors import ProblemError
from dp_solver.kim23.key_order import key_order
from dp_solver.quantities import as_cost, as_integer, as_number

__all__ = ["Importances", "Latencies", "Span", "extended_importance", "joined", "normalized", "optimal_latency"]

Span: TypeAlias = tuple[int, int]
Entry: TypeAlias = tuple[int, int, int, int]
Place: TypeAlias = tuple[int, int]  # a position and its state
Latencies: TypeAlias = Mapping[Any, float]  # (i, j) or (i, j, k) -> ms
Importances: TypeAlias = Mapping[Any, float]  # (i, j, a, b) or (i, j, a, b, k) -> importance
Baseline: TypeAlias = Literal["original", "single", "all"]
NAMED = 5  # how many keys an error shows


def joined(
    T: Latencies,  # noqa: N803 -- the paper's symbols
    I: Importances,  # noqa: E741, N803
) -> tuple[dict[Any, float], dict[Any, float]]:
    """Return copies of T and I, checked to belong together, with their entries in a fixed order.

    Raises:
        ProblemError: a table is empty, a key is malformed, kernels are named in one table only, an importance has no
            latency, the tables end at different positions, a number is not finite, or a latency is negative.
    """
    latency, importance = _latencies(T), _importances(I)
    if not latency or not importance:
        raise ProblemError(f"T has {len(latency)} entries and I {len(importance)}; each needs at least one")
    if len({*map(len, latency), *(len(key) - 2 for key in importance)}) > 1:
        raise ProblemError("some keys of T and I name a kernel and some do not; name one in all of them or in none")
    orphans = [key for key in importance if (*key[:2], *key[4:]) not in latency]
    if orphans:
        shown = ", ".join(map(str, orphans[:NAMED])) + (", ..." if len(orphans) > NAMED else "")
        raise ProblemError(
            f"{len(orphans)} entries of I have no latency in T: {shown}; the tables do not belong together, or those "
            "spans are still to be measured"
        )
    last, last_importance = max(key[1] for key in latency), max(key[1] for key in importance)
    if last != last_importance:
        raise ProblemError(
            f"T ends at position {last} and I at position {last_importance}; they must be of the same network"
        )
    return dict(sorted(latency.items(), key=_order)), dict(sorted(importance.items(), key=_order))


def optimal_latency(T: Mapping[Span, float]) -> tuple[dict[Span, float], dict[Span, tuple[int, ...]]]:  # noqa: N803
    """Return T_opt and the breaks inside each span: Algorithm 1, in section 4 of the paper; T is not modified.

    T_opt[i, j] is the least sum of T over all ways to cut (i, j] into spans of T, and the breaks are where it is cut.
    The recursion of `dp_solver.kim23.two_stage` finds it, with T infinite for missing spans; a way may pass m although
    (i, m] was not measured as a whole. Among equal latencies the single merge wins, then the first m.

    Complexity: for each position O(spans that begin between it and the furthest end of its own spans).

    Raises:
        ProblemError: T is no mapping, a key is malformed or names a kernel, or a number is negative or not finite.

    Example:
        >>> optimal_latency({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 3.0})
        ({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 2.0}, {(0, 1): (), (1, 2): (), (0, 2): (1,)})
    """
    T = _without_kernels("T", _latencies(T), 2)  # noqa: N806
    ends = _ends_by_start(T)
    ways = {i: _fastest_ways(i, ends, T) for i in ends}
    return {(i, j): ways[i][j][0] for i, j in T}, {(i, j): ways[i][j][1] for i, j in T}


def _ends_by_start(T: Mapping[Span, float]) -> dict[int, list[int]]:  # noqa: N803
    """Return where the spans that begin at a position end, positions in rising order."""
    ends: dict[int, list[int]] = {}
    for i, j in sorted(T):
        ends.setdefault(i, []).append(j)
    return ends


def _fastest_ways(
    i: int,
    ends: Mapping[int, list[int]],
    T: Mapping[Span, float],  # noqa: N803
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Returns, for each position that spans from position i lead to, the least latency and where that way cuts."""
    ways: dict[int, tuple[float, tuple[int, ...]]] = {i: (0.0, ())}
    for m in _from(i, ends):  # every way to m is known by now, since its last span begins before m
        for j in ends[m] if m in ways else ():
            ms, breaks = ways[m]
            if j not in ways or ms + T[m, j] < ways[j][0]:
                ways[j] = ms + T[m, j], (*breaks, m) if m > i else ()
    return ways


def _from(i: int, ends: Mapping[int, list[int]]) -> list[int]:
    """Return the positions where spans begin, from i to before the furthest end of those that begin at i."""
    return [m for m in ends if i <= m < ends[i][-1]]


def extended_importance(
    I: Mapping[Entry, float],  # noqa: E741, N803
) -> dict[Entry, float]:
    """Return I_ext: the importance of each span, or of its parts together where that is more.

    I_ext[i, j, a, b] is the largest sum of I over all ways to cut (i, j] into entries of I, in state a at i, b at j and
    0 at every cut between. The recursion of `dp_solver.kim23.two_stage` finds it (Algorithm 3, in appendix B of
    the paper), with I minus infinity for missing entries. Only entries of I are extended. I is not modified.

    Raises:
        ProblemError: I is no mapping, a key is malformed or names a kernel, a number is not finite.

    Example:
        >>> extended_importance({(0, 1, 1, 0): -0.1, (1, 2, 0, 1): 0.0, (0, 2, 1, 1): -0.5})[0, 2, 1, 1]
        -0.1
    """
    I = _without_kernels("I", _importances(I), 4)  # noqa: E741, N806
    entries: dict[Place, list[Place]] = {}
    for i, j, a, b in sorted(I):
        entries.setdefault((i, a), []).append((j, b))
    promises = {start: _promises(start, entries, I) for start in entries}
    return {(i, j, a, b): promises[i, a][j, b] for i, j, a, b in I}


def _promises(
    start: Place,
    entries: Mapping[Place, list[Place]],
    I: Mapping[Entry, float],  # noqa: E741, N803
) -> dict[Place, float]:
    """Returns, for each place that entries lead to from `start`, the most importance, in state 0 on the way."""
    best = {start: 0.0}
    for m, state in _on_the_way(start, entries):  # every way to m is known by now: its last entry begins before m
        for j, b in entries[m, state] if (m, state) in best else ():
            best[j, b] = max(best.get((j, b), -math.inf), best[m, state] + I[m, j, state, b])
    return best


def _on_the_way(start: Place, entries: Mapping[Place, list[Place]]) -> list[Place]:
    """Return `start` and the later places in state 0 where entries begin, as far as those from `start` reach."""
    furthest = max(j for j, _ in entries[start])
    return [start, *((m, state) for m, state in entries if start[0] < m < furthest and state == 0)]


def normalized(
    I: Importances,  # noqa: E741, N803
    *,
    activations: Collection[int] | None = None,
    alpha: float = 1.0,
    baseline: Baseline = "original",
) -> dict[Any, float]:
    """Return I minus `alpha` times the mean importance of its baseline entries; call it before the extension.

    Args:
        I: {(i, j, a, b): importance}, or with kernels; not modified.
        activations: for "original", which needs it, the positions behind which the original network has an activation,
            () if nowhere. Position 0 counts as one. The other baselines take none.
        alpha: the share of the mean to subtract; 0 leaves I as it is.
        baseline: which entries count: "original" single layers (j = i + 1) whose states are the original network's
            own, "single" all single layers, "all" every entry.

    Raises:
        ProblemError: I is malformed, the baseline is unknown, needs activations or takes none, the activations are no
            positions, alpha is not finite, or I has no such entry.

    Example:
        >>> I = {(0, 1, 1, 1): -0.2, (1, 2, 1, 0): -0.4, (1, 2, 1, 1): 0.6, (0, 2, 1, 1): -0.8}
        >>> {key: round(value, 9) for key, value in normalized(I, activations=[1]).items()}
        {(0, 1, 1, 1): 0.1, (1, 2, 1, 0): -0.1, (1, 2, 1, 1): 0.9, (0, 2, 1, 1): -0.5}
    """
    I, alpha = _importances(I), as_number(alpha, "alpha")  # noqa: E741, N806
    tests: dict[str, Callable[[int, int, int, int], bool]] = {
        "original": lambda i, j, a, b: j - i == 1 and (a == 1) == (i in own) and (b == 1) == (j in own),
        "single": lambda i, j, a, b: j - i == 1,
        "all": lambda i, j, a, b: True,
    }
    if not isinstance(baseline, str) or baseline not in tests:
        raise ProblemError(f"baseline (={baseline!r}) must be one of {', '.join(tests)}")
    own = _own_activations(baseline, activations)
    counted = [value for key, value in I.items() if tests[baseline](*key[:4])]
    if not counted:
        raise ProblemError(
            f"no entry of I is a baseline of kind {baseline!r} with activations (={activations!r}); name the "
            "positions of the original network's activations, or choose another baseline"
        )
    mean = sum(counted) / len(counted)
    return {key: value - alpha * mean for key, value in I.items()}


def _own_activations(baseline: str, activations: Collection[int] | None) -> set[int]:
    """Return the positions whose own state is 1; only the baseline "original" has any use for them."""
    if baseline == "original" and activations is None:
        raise ProblemError(
            "baseline 'original' needs activations, and none were given; name the positions behind which the original "
            "network has an activation, () if nowhere, or take the baseline 'single' or 'all'"
        )
    if baseline in ("single", "all") and activations is not None:
        raise ProblemError(
            f"activations (={activations!r}) go with baseline 'original' only, and baseline (={baseline!r}) was given; "
            "leave them out"
        )
    positions = () if activations is None else activations
    iterable = isinstance(positions, Collection) and getattr(positions, "ndim", 1) == 1  # or an array of one number
    own = {as_integer(position) for position in positions} if iterable else {None}
    if None in own:
        given = reprlib.repr(activations)
        raise ProblemError(f"activations (={given}) must be a collection of positions, integers each; correct it")
    return {0, *(position for position in own if position is not None)}


def _latencies(T: Latencies) -> dict[Any, float]:  # noqa: N803
    _require_mapping("T", T)
    return {_key("T", key, states=0): as_cost(ms, "T[{!r}]", key) for key, ms in T.items()}


def _importances(I: Importances) -> dict[Any, float]:  # noqa: E741, N803
    _require_mapping("I", I)
    return {_key("I", key, states=2): as_number(value, "I[{!r}]", key) for key, value in I.items()}


def _require_mapping(name: str, table: object) -> None:
    if not isinstance(table, Mapping):
        given = reprlib.repr(table)
        raise ProblemError(
            f"{name} (={given}) must map keys to numbers; give a dict, as the importers of tables return"
        )


def _without_kernels(name: str, table: dict[Any, float], size: int) -> dict[Any, float]:
    named = next((key for key in table if len(key) > size), None)
    if named is not None:
        raise ProblemError(
            f"key {named!r} of {name} names a kernel, and tables with kernels have no first stage; leave the kernel "
            "out or give the table to two_stage"
        )
    return table


def _key(table: str, key: object, *, states: int) -> tuple[Any, ...]:
    """Return a key of T (no states) or I (two), checked."""
    form = "(i, j, a, b)" if states else "(i, j)"
    if not isinstance(key, tuple) or len(key) not in (2 + states, 3 + states):
        raise ProblemError(f"key {key!r} of {table} must be {form} or, with a kernel, {form[:-1]}, k)")
    i, j, *ends = map(as_integer, key[: 2 + states])
    if i is not None and j is not None and 0 <= i < j and set(ends) <= {0, 1}:
        return (i, j, *ends, *key[2 + states :])
    needed = "integers with 0 <= i < j" + (" and states a and b of 0 or 1" if states else "")
    raise ProblemError(f"key {key!r} of {table} must be {form} of {needed}; correct it")


def _order(entry: tuple[tuple[Any, ...], float]) -> tuple[Any, ...]:
    return key_order(entry[0])
