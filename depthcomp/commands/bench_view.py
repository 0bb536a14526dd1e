"""Comparison of artefacts, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from depthcomp.commands.bench import BenchRow, Comparison
from depthcomp.results.wording import milliseconds, where
from latency_tables.backends.gpu_state import slowdowns

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison_view", "notes"]


def comparison_view(comparison: Comparison) -> Table:
    """Return a comparison as rows, with a column of precisions where they differ."""
    from rich.table import Table
    from rich.text import Text

    mixed = len(_precisions(comparison)) > 1
    view = Table(title=Text(f"against {comparison.baseline}"))
    view.add_column("name", overflow="fold")
    for name in (*(["precision"] if mixed else []), "median", "spread", "minimum", "speed-up", "n"):
        view.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        view.add_row(*map(Text, _cells(row, with_precision=mixed)))
    return view


def _cells(row: BenchRow, *, with_precision: bool) -> tuple[str, ...]:
    timing = row.timing
    return (
        row.entry.name,
        *([row.entry.precision] if with_precision else []),
        milliseconds(timing.median_ms),
        f"{100 * timing.spread:.1f} %{' unstable' if row.unstable else ''}",
        milliseconds(timing.ms),
        f"{row.speedup:.2f}x",
        str(timing.n),
    )


def _precisions(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(row.entry.precision for row in comparison.rows))


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield the lines below the table, the environment first."""
    here = comparison.environment
    shapes = ", ".join("x".join(map(str, shape)) for shape in comparison.rows[0].entry.inputs)
    precisions = " and ".join(_precisions(comparison))
    yield f"{where(here)}, {precisions}, input {shapes}; {here.os}, Python {here.python}"
    slow = slowdowns(comparison.device_state)
    if slow:
        yield f"the GPU was slowed down ({', '.join(slow)}), so these latencies are longer than usual"
    for row in comparison.rows:
        then = row.entry.when_compressed
        if then is not None:
            yield (
                f"{row.entry.name}: {milliseconds(then['original_ms'])} -> {milliseconds(then['measured_ms'])} when it "
                f"was compressed, on {then['backend']}, {then['device']}"
            )
        if row.command is not None:
            yield f"{row.entry.name} with NVIDIA's tool: {row.command}"
