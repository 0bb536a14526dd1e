"""Terminal output of a compression: its progress, and its closing table."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from depthcomp.results.wording import (
    deeds,
    duration,
    line_residual,
    milliseconds,
    place,
    tuning,
    verdict,
    whole_latency,
)

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    from rich.table import Table

    from depthcomp.results.result import CompressionResult
    from latency_tables import Timing

__all__ = ["Progress", "summary"]

REFRESH_SECONDS = 0.1  # the eye sees no faster refresh


def summary(result: CompressionResult) -> Table:
    """Return the closing table of a compression."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{result.speedup:.2f}x as fast"), caption=Text(place(result)))
    for name in ("", "original", "compressed"):
        table.add_column(name, justify="left" if not name else "right")
    for row in _rows(result):
        table.add_row(*map(Text, row))
    return table


def _rows(result: CompressionResult) -> list[tuple[str, str, str]]:
    original, compressed = result.original_timing, result.measured_timing
    return [
        ("measured latency", milliseconds(original.median_ms), milliseconds(compressed.median_ms)),
        ("  spread over rounds, samples", _certainty(original), _certainty(compressed)),
        ("predicted latency", "", milliseconds(result.predicted_ms)),
        *([whole_latency(result.part)] if result.part is not None else []),
        *([("  residual of the predicting line", "", line_residual(result))] if result.table.calibration else []),
        (f"budget {result.budget}", milliseconds(result.budget_ms), verdict(result)),
        ("convolutions on the longest path", str(result.original_depth), str(result.depth)),
        ("loss against the original, on unseen images", "0", f"{result.loss:.4g}"),
        *([(f"  {result.judged_by}", "", "")] if result.judged_by else []),
        *_tuning_rows(result),
        *([("spans merged for free", "", str(len(result.free_merges)))] if result.free_merges else []),
        ("spans rewritten", "", deeds(result.spans)),
        ("spans refused", "", str(len(result.refusals))),
        *([("choices scored", "", f"{effort.scored} of {effort.choices}")] if (effort := result.effort) else []),
    ]


def _tuning_rows(result: CompressionResult) -> list[tuple[str, str, str]]:
    record = result.finetuned
    if record is None:
        return []
    losses = f"{record.loss_before:.4g}", f"{record.loss_after:.4g}"
    rows = [("validation loss before and after fine-tuning", *losses)]
    if record.metric != "loss":
        before, after = f"{record.metric_before:.4g}", f"{record.metric_after:.4g}"
        rows.append((f"{record.metric} before and after", before, after))
    return [*rows, ("  fine-tuned", "", tuning(record))]


def _certainty(timing: Timing) -> str:
    return f"{100 * timing.spread:.1f} %, n={timing.n}"


class Progress:
    """Progress on stderr: the running stage, how far it is and how long it will take.

    It is a context manager and a callable: `progress(stage, done, total)` after each piece of work. A stage begins with
    its first call and ends when the next stage begins. A stage that is only announced by then (`done` is 0) waits
    instead: it may contain other stages, and is timed from its announcement. On a terminal the running stage has a bar.
    Each finished stage leaves a line with its seconds.

    Only the calls redraw the bar: a thread would disturb the latency measurements.

    Args:
        console: the console to write to; stderr by default.

    Example:
        >>> with Progress() as progress:  # doctest: +SKIP
        ...     progress("measuring", 3, 10)
    """

    def __init__(self, console: rich.console.Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(file=sys.stderr)
        self._bars = _bars(self._console) if _is_live(self._console) else None
        self._stage: str | None = None
        self._task: rich.progress.TaskID | None = None
        self._began = self._drawn = 0.0
        self._done = 0
        self._announced: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end("done" if kind is None else "stopped")
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` pieces of a stage are finished; a total of 0 means unknown."""
        if stage != self._stage:
            self._pause_or_end()
            self._begin(stage)
        self._done = done
        if self._bars is None or self._task is None:
            return
        self._bars.update(self._task, completed=done, total=total or None)
        if done >= total or perf_counter() - self._drawn >= REFRESH_SECONDS:
            self._bars.refresh()
            self._drawn = perf_counter()

    def foretell(self, seconds: float) -> None:
        """Tell how long the whole run will take."""
        line = f"about {duration(seconds)} in all"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _begin(self, stage: str) -> None:
        self._stage, self._began = stage, self._announced.pop(stage, perf_counter())
        self._drawn = 0.0
        if self._bars is not None:
            self._task = self._bars.add_task(stage, total=None)

    def _pause_or_end(self) -> None:
        if self._stage is not None and self._done == 0:
            self._announced[self._stage] = self._began
            self._clear()
        else:
            self._end("done")

    def _clear(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        self._stage = self._task = None

    def _end(self, how: str) -> None:
        if self._stage is None:
            return
        seconds = perf_counter() - self._began
        line = f"{how:<7}  {self._stage}, {seconds:.1f} s"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._clear()


def _is_live(console: rich.console.Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _bars(console: rich.console.Console) -> rich.progress.Progress:
    """Return bars that vanish when they stop; stdout stays untouched, as it may carry JSON."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
    )
