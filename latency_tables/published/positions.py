"""JSON files of published latencies by position: they price one network, and no table takes them in."""

import math
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from depthcomp_errors import TableError
from depthcomp_files import JsonFormat
from latency_tables.published.kim23 import MergedKernel, PublishedLatencies

__all__ = ["write_positions"]

POSITIONS_VERSION = 1


class _PositionRow(BaseModel):
    """The latency of a span (start, end] of one network."""

    model_config = ConfigDict(extra="forbid", strict=True)

    start: int
    end: int
    ms: float
    spread: float | None  # none where the latency is 0 and the deviation is not
    breaks: list[int] | None  # ends inside the span, in a table of optimal latencies
    kernel: int | None  # of the merged convolution, in LayerMerge's tables, with the next two
    stride: int | None
    depthwise: bool | None


class _PositionFile(BaseModel):
    """The file format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["list of latencies by position"]
    positions_version: Literal[1]
    rows: list[_PositionRow]


_FORMAT = JsonFormat(
    "list of latencies by position", _PositionFile, "positions_version", POSITIONS_VERSION, "import it anew", TableError
)


def write_positions(path: Path, published: PublishedLatencies) -> None:
    """Write published latencies to a file, all of it or nothing; a file of another kind is not overwritten.

    Raises:
        TableError: the path cannot be written, or holds something else.
    """
    rows = [_row(published, key) for key in sorted(published.ms, key=str)]
    _FORMAT.write(path, {"rows": rows})


def _row(published: PublishedLatencies, key: tuple[Any, ...]) -> dict[str, Any]:
    kernel, stride, depthwise = cast(MergedKernel, key[2]) if len(key) > 2 else (None, None, None)
    spread = published.spread[key]
    row = _PositionRow(
        start=key[0],
        end=key[1],
        ms=published.ms[key],
        spread=spread if math.isfinite(spread) else None,
        breaks=list(published.breaks[key]) if key in published.breaks else None,
        kernel=kernel,
        stride=stride,
        depthwise=depthwise,
    )
    return row.model_dump()
