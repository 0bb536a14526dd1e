"""The quality of a latency table, judged from its own entries: whether they can be trusted, and which cannot."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from latency_tables.operators.signature import OperatorSignature
from latency_tables.operators.size import multiply_adds
from latency_tables.tables.calibration import Calibration, fit_affine
from latency_tables.tables.entry import Entry
from latency_tables.tables.table import LatencyTable

__all__ = ["Inversion", "Quality", "SizeLine", "quality_of"]

LEAST_ENTRIES = 8  # of a kind, for a line through them to mean anything
TOLERANCE = 0.10  # an operator may be so much faster than a smaller one: channel counts that fit a runtime's blocks


@dataclass(frozen=True, slots=True)
class SizeLine:
    """The line through the latencies of the operators of a kind, over their multiply-adds.

    Attributes:
        kind: "convolution", "grouped convolution", "linear", "avg_pool" or "scale".
        n: operators behind it.
        intercept_ms: latency in ms of an operator that computes nothing; far from zero where the call overhead was
            not removed, or too much of it.
        ms_per_giga: ms for each 1e9 multiply-adds.
    """

    kind: str
    n: int
    intercept_ms: float
    ms_per_giga: float


@dataclass(frozen=True, slots=True)
class Inversion:
    """An operator that is slower than one that is at least as large in every respect and otherwise the same.

    Attributes:
        smaller: key of the smaller operator.
        larger: key of the larger one.
        smaller_ms: latency of the smaller in ms.
        larger_ms: latency of the larger in ms.
    """

    smaller: str
    larger: str
    smaller_ms: float
    larger_ms: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a table can be trusted.

    Attributes:
        n: entries.
        overhead_ms: what a call costs by itself, in ms, removed from the entries.
        lines: latency over size, for each kind of operator that has entries enough.
        pairs: pairs of operators of which one is at least as large as the other and otherwise the same.
        inversions: those pairs in which the smaller one is slower by more than 10 % and the spreads; worst first.
        unstable: spread by key of the entries that never became steady.
        drifted: rounds in which the machine changed its speed, by key of the entries that have such rounds.
        free: keys of entries that cost nothing once the overhead is removed.
        failures: why an operator could not be measured, by key.
        calibration: the line from sums to whole networks; None where none is stored.
    """

    n: int
    overhead_ms: float
    lines: tuple[SizeLine, ...]
    pairs: int
    inversions: tuple[Inversion, ...]
    unstable: Mapping[str, float]
    drifted: Mapping[str, int]
    free: tuple[str, ...]
    failures: Mapping[str, str]
    calibration: Calibration | None

    @property
    def sound(self) -> bool:
        """Whether every operator was measured and every measurement is steady."""
        return not self.unstable and not self.failures


def quality_of(table: LatencyTable) -> Quality:
    """Return how far a table can be trusted; nothing is measured."""
    entries = {OperatorSignature.parse(key): table.entries[key] for key in sorted(table.entries)}
    pairs = [pair for family in _families(entries).values() for pair in _ordered(family)]
    inversions = [_inversion(pair, entries) for pair in pairs if _inverted(pair, entries)]
    return Quality(
        n=len(entries),
        overhead_ms=table.method.overhead_ms,
        lines=tuple(_lines(entries)),
        pairs=len(pairs),
        inversions=tuple(sorted(inversions, key=lambda found: found.larger_ms / found.smaller_ms)),
        unstable={signature.key: entry.spread for signature, entry in entries.items() if entry.unstable},
        drifted={signature.key: entry.drifted for signature, entry in entries.items() if entry.drifted},
        free=tuple(signature.key for signature, entry in entries.items() if entry.ms == 0),
        failures=dict(sorted(table.failures.items())),
        calibration=table.calibration,
    )


def _lines(entries: Mapping[OperatorSignature, Entry]) -> Iterator[SizeLine]:
    kinds: dict[str, list[OperatorSignature]] = {}
    for signature in (signature for signature, entry in entries.items() if entry.ms > 0):
        kinds.setdefault(_kind(signature), []).append(signature)
    for kind, signatures in sorted(kinds.items()):
        if len(signatures) >= LEAST_ENTRIES:
            giga = [multiply_adds(signature) / 1e9 for signature in signatures]
            line = fit_affine(giga, [entries[signature].ms for signature in signatures], intercept_share=math.inf)
            yield SizeLine(kind, line.n, line.intercept_ms, line.slope)


def _kind(signature: OperatorSignature) -> str:
    if signature.op != "conv":
        return signature.op
    return "convolution" if signature.groups == 1 else "grouped convolution"


Pair = tuple[OperatorSignature, OperatorSignature]  # (smaller, larger)


def _families(entries: Mapping[OperatorSignature, Entry]) -> dict[tuple[object, ...], list[OperatorSignature]]:
    """Group the operators that differ in their sizes alone."""
    families: dict[tuple[object, ...], list[OperatorSignature]] = {}
    for s in entries:
        depthwise = s.groups > 1 and s.groups == s.in_channels == s.out_channels
        groups = "depthwise" if depthwise else s.groups
        rest = (s.op, s.kernel, s.stride, s.padding, s.dilation, groups, s.activation, s.residual, s.dtype, s.signals)
        families.setdefault(rest, []).append(s)
    return families


def _ordered(family: list[OperatorSignature]) -> Iterator[Pair]:
    for first, second in combinations(family, 2):
        sizes = list(zip(_sizes(first), _sizes(second), strict=True))
        if all(a <= b for a, b in sizes):
            yield first, second
        elif all(a >= b for a, b in sizes):
            yield second, first


def _sizes(signature: OperatorSignature) -> tuple[int, ...]:
    return signature.batch, signature.in_channels, signature.out_channels, *signature.in_size


def _inverted(pair: Pair, entries: Mapping[OperatorSignature, Entry]) -> bool:
    smaller, larger = (entries[signature] for signature in pair)
    return smaller.ms > larger.ms * (1 + max(TOLERANCE, smaller.spread + larger.spread))


def _inversion(pair: Pair, entries: Mapping[OperatorSignature, Entry]) -> Inversion:
    smaller, larger = pair
    return Inversion(smaller.key, larger.key, entries[smaller].ms, entries[larger].ms)
