"""Importances from the CSV tables of Kim et al. 2023 and LayerMerge: scores by position in one network.

Columns of the files, from github.com/snu-mllab/LayerMerge (MIT), which holds both methods: `st,end,st_act,end_act`
and `imp` (made ready for the solver) or a score, `val_acc` and the like; LayerMerge has no states and names the
merged kernel instead, `st,end,ker,str,is_dw`, with `importance` where the scores were made ready. Other columns are
left alone.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

from depthcomp_errors import TableError
from latency_tables.published.csv_rows import Row, read_rows
from latency_tables.published.kim23 import merged_kernel, span_of

__all__ = ["import_importance"]

READY = ("imp", "importance")
STATES = ("st_act", "end_act")
LOSS = "loss"  # in a column's name: lower is better there


def import_importance(path: str | os.PathLike[str], *, column: str | None = None) -> dict[tuple[Hashable, ...], float]:
    """Return the importances of a published CSV table in the form that `dp_solver.two_stage` takes.

    Args:
        path: the file.
        column: which score to read, such as "val_acc" or "val_loss_ratio"; losses are negated, so that higher is better
            throughout. None reads `imp` or `importance`.

    Returns:
        Importance by (start, end, state at start, state at end), with (kernel, stride, depthwise) behind them in
        LayerMerge's tables, whose ends all have state 1.

    Raises:
        TableError: the file cannot be read, a column is missing, a line is truncated, a field is no number or out
            of its range, or a key stands there twice; the message names the file and the line.

    Example:
        >>> import_importance("ext_importance.csv")[0, 1, 1, 1]  # doctest: +SKIP
        0.012
    """
    importance: dict[tuple[Hashable, ...], float] = {}
    for row in read_rows(path, ("st", "end")):
        key = _key(row)
        if key in importance:
            row.refuse(f"{key} stands in the table twice")
        importance[key] = _score(row, column)
    return importance


def _key(row: Row) -> tuple[Hashable, ...]:
    kernel = merged_kernel(row)
    if kernel:
        return (*span_of(row), 1, 1, *kernel)
    _require(row, STATES)
    states = tuple(row.integer(name) for name in STATES)
    if not set(states) <= {0, 1}:
        row.refuse(f"st_act and end_act (={states}) must be 0 or 1")
    return (*span_of(row), *states)


def _score(row: Row, column: str | None) -> float:
    if column is None:
        column = next((name for name in READY if name in row.texts), None)
        if column is None:
            raise TableError(
                f"{row.path} has no column {' or '.join(READY)}; name the score to read, as column='val_acc'."
            )
    _require(row, (column,))
    score = row.number(column)
    return -score if LOSS in column else score


def _require(row: Row, columns: tuple[str, ...]) -> None:
    for name in columns:
        if name not in row.texts:
            raise TableError(f"{row.path}, line 1: the table lacks the column {name!r}; it has {', '.join(row.texts)}.")
