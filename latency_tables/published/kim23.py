"""The latency tables that Kim et al. 2023 and LayerMerge publish: milliseconds by position in one network.

Their rows say where a span starts and ends in the network that was measured, not which operator it is, so they do not
become a `LatencyTable`. Columns of the files, from github.com/snu-mllab/Efficient-CNN-Depth-Compression (MIT) and
github.com/snu-mllab/LayerMerge (MIT):

- latency: `st,end,time,stdev`, a row a span (st, end], in ms;
- optimal latency (T_opt): the same, and `breaks`, the ends of the merges that make up the span, st and end included;
- LayerMerge's latency: `st,end,ker,str,is_dw,time,stdev`, a row for each kernel size, stride and depthwise or not that
  the span's merge may come to.

Other columns are left alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from depthcomp_errors import TableError
from latency_tables.published.csv_rows import Row, read_rows

__all__ = ["MergedKernel", "NoisyRow", "PublishedLatencies", "import_kim23", "merged_kernel", "span_of"]

NOISY = 0.15  # of the latency: the published tables hold standard deviations of up to 85 % of it
LONGEST = 18  # digits of a position, blanks included
NAMED = 5  # how many noisy rows the warning shows
KERNEL_COLUMNS = ("ker", "str", "is_dw")
MergedKernel = tuple[int, int, bool]


@dataclass(frozen=True, slots=True)
class NoisyRow:
    """A row whose latency is not to be trusted.

    Attributes:
        key: of the row.
        line: its number in the file.
        ms: latency in ms.
        spread: standard deviation as a share of it.
    """

    key: tuple[Hashable, ...]
    line: int
    ms: float
    spread: float


@dataclass(frozen=True, slots=True)
class PublishedLatencies:
    """The latencies of one published file.

    Attributes:
        ms: latency in ms by (start, end), or by (start, end, (kernel, stride, depthwise)) in LayerMerge's tables.
        spread: standard deviation as a share of the latency, by the same keys.
        breaks: in a table of optimal latencies, the ends inside each span; empty in others.
        noisy: the rows whose spread is above 15 %. They are in `ms` like all others.
    """

    ms: Mapping[tuple[Hashable, ...], float]
    spread: Mapping[tuple[Hashable, ...], float]
    breaks: Mapping[tuple[Hashable, ...], tuple[int, ...]]
    noisy: Sequence[NoisyRow]


def import_kim23(path: str | os.PathLike[str]) -> PublishedLatencies:
    """Return the latencies of a published CSV table, of Kim et al. 2023 or of LayerMerge.

    Raises:
        TableError: the file cannot be read, a column is missing, a line is truncated, a field is no number or out
            of its range, or a key stands there twice; the message names the file and the line.

    Warns:
        UserWarning: rows have a spread above 15 %; they are kept.

    Example:
        >>> table = import_kim23("time_fish_gpu1_1228.csv")  # doctest: +SKIP
        >>> table.ms[0, 1], len(table.noisy)                 # doctest: +SKIP
        (1.1677890269160272, 21)
    """
    ms, spread, breaks, noisy = {}, {}, {}, []
    for row in read_rows(path, ("st", "end", "time", "stdev")):
        key = (*span_of(row), *merged_kernel(row))
        if key in ms:
            row.refuse(f"{key} stands in the table twice")
        ms[key], spread[key] = _latency(row)
        if "breaks" in row.texts:
            breaks[key] = _breaks(row)
        if spread[key] > NOISY:
            noisy.append(NoisyRow(key, row.line, ms[key], spread[key]))
    if noisy:
        _warn(path, noisy, len(ms))
    return PublishedLatencies(ms, spread, breaks, noisy)


def span_of(row: Row) -> tuple[int, int]:
    """Return the span of a row, from its columns `st` and `end`.

    Raises:
        TableError: they are no integers with 0 <= st < end.
    """
    start, end = row.integer("st"), row.integer("end")
    if start >= end:
        row.refuse(f"st (={start}) must be less than end (={end})")
    return start, end


def merged_kernel(row: Row) -> tuple[()] | tuple[MergedKernel]:
    """Return LayerMerge's kernel of a row (kernel size, stride, depthwise), or nothing where it names none.

    Raises:
        TableError: some of the columns `ker`, `str` and `is_dw` are missing or malformed.
    """
    named = [column for column in KERNEL_COLUMNS if column in row.texts]
    if not named:
        return ()
    if len(named) < len(KERNEL_COLUMNS):
        raise TableError(f"{row.path}, line 1: the table has {', '.join(named)}; it needs {', '.join(KERNEL_COLUMNS)}.")
    return ((row.integer("ker"), row.integer("str"), row.boolean("is_dw")),)


def _latency(row: Row) -> tuple[float, float]:
    ms, deviation = row.number("time"), row.number("stdev")
    if ms < 0 or deviation < 0:
        row.refuse(f"time (={ms}) and stdev (={deviation}) must be at least 0 ms")
    if ms == 0:  # LayerMerge's identity, which nothing was measured for
        return ms, 0.0 if deviation == 0 else float("inf")
    return ms, deviation / ms


def _breaks(row: Row) -> tuple[int, ...]:
    """Return the ends inside the span: the column lists the span's own start and end, too."""
    parts = row.texts["breaks"].split(",")
    if not all(part.strip().isdecimal() and len(part) <= LONGEST for part in parts):
        row.refuse(f"breaks (={row.texts['breaks']!r}) must be positions with commas between them")
    ends = tuple(int(part) for part in parts)
    if ends != tuple(sorted(set(ends))) or (ends[0], ends[-1]) != span_of(row):
        row.refuse(f"breaks (={row.texts['breaks']!r}) must rise from st to end")
    return ends[1:-1]


def _warn(path: str | os.PathLike[str], noisy: Sequence[NoisyRow], total: int) -> None:
    worst = sorted(noisy, key=lambda row: -row.spread)[:NAMED]
    shown = ", ".join(f"line {row.line} {row.key} {row.spread:.0%}" for row in worst)
    warnings.warn(
        f"{path}: the standard deviation of {len(noisy)} of {total} rows is above {NOISY:.0%} of the latency; they are "
        f"kept: {shown}{', ...' if len(noisy) > NAMED else ''}",
        stacklevel=3,
    )
