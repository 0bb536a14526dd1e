"""What the terminal shows: how far a compression is, its closing table, and the words that reports share."""

from __future__ import annotations

import sys
from collections import Counter
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    from rich.table import Table

    from depthcomp.result import CompressionResult
    from depthcomp.training.finetune import FinetuneRecord
    from fx_passes import SpanChoice
    from latency_tables import Environment, Timing

__all__ = [
    "Progress",
    "deed",
    "line_residual",
    "milliseconds",
    "percent",
    "place",
    "summary",
    "tuning",
    "verdict",
    "where",
]

REFRESH_SECONDS = 0.1  # faster is not seen
_BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_cuda": "ONNX Runtime's CUDA provider",
    "onnxruntime_tensorrt": "ONNX Runtime's TensorRT provider",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "torch_compile": "torch.compile",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}
_PAST = {"fit": "fitted", "merge": "merged", "drop": "dropped"}


def milliseconds(ms: float) -> str:
    """Return a latency as text: two decimals from 1 ms on, three below.

    Example:
        >>> milliseconds(12.844), milliseconds(0.1234)
        ('12.84 ms', '0.123 ms')
    """
    return f"{ms:.2f} ms" if abs(ms) >= 1 else f"{ms:.3f} ms"


def percent(share: float) -> str:
    """Return a relative difference as text, signed.

    Example:
        >>> percent(0.0187), percent(-0.25)
        ('+1.9 %', '-25.0 %')
    """
    return f"{100 * share:+.1f} %"


def place(result: CompressionResult) -> str:
    """Return where a result was measured: library, device, threads, precision and batch size."""
    return f"{where(result.environment)}, {result.environment.precision}, batch {len(result.example_inputs[0])}"


def where(here: Environment) -> str:
    """Return the library, the device and the threads of an environment."""
    library = f"{_BACKENDS.get(here.backend, here.backend)} {here.backend_version}"
    return f"{library}, {here.device}, {here.threads} thread{'' if here.threads == 1 else 's'}"


def line_residual(result: CompressionResult) -> str:
    """Return how far the measured networks lie from the line that predicts them."""
    line, residual = result.table.calibration, result.residual
    return "not known" if line is None or residual is None else f"{100 * residual:.1f} % over {line.n} networks"


def verdict(result: CompressionResult) -> str:
    """Return whether the measured latency is within the budget, and by how much."""
    gap = milliseconds(abs(result.budget_ms - result.measured_ms))
    return f"met, {gap} to spare" if result.measured_ms <= result.budget_ms else f"missed by {gap}"


def deed(choice: SpanChoice) -> str:
    """Return what a choice does with its span, in the past tense."""
    size = "" if choice.kernel is None else f" {choice.kernel[0]}x{choice.kernel[1]}"
    return f"{_PAST[choice.kind]}{size}"


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
        *([("  residual of the predicting line", "", line_residual(result))] if result.table.calibration else []),
        (f"budget {result.budget}", milliseconds(result.budget_ms), verdict(result)),
        ("convolutions on the longest path", str(result.original_depth), str(result.depth)),
        ("loss against the original, cross-fitted", "0", f"{result.loss:.4g}"),
        *_tuning_rows(result),
        *([("spans merged for free", "", str(len(result.free_merges)))] if result.free_merges else []),
        ("spans rewritten", "", _deeds(result)),
        ("spans refused", "", str(len(result.refusals))),
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


def tuning(record: FinetuneRecord) -> str:
    """Return which network fine-tuning chose, of how many epochs and seconds."""
    epochs = f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}"
    return f"best: {record.best}; {epochs} in {record.seconds:.0f} s"


def _certainty(timing: Timing) -> str:
    return f"{100 * timing.spread:.1f} %, n={timing.n}"


def _deeds(result: CompressionResult) -> str:
    counts = Counter[str](record.choice.kind for record in result.spans)
    return ", ".join(f"{counts[kind]} {word}" for kind, word in _PAST.items() if counts[kind]) or "none"


class Progress:
    """Shows on stderr which stage is running, how far it is and how long it will take.

    A context manager and a callable: `progress(stage, done, total)` after each piece of work. A stage begins
    when it is named first and is done when the next begins; one that was only announced (`done` is 0) by then
    waits, so that it may hold other stages, and is timed from its announcement. On a terminal the running
    stage has a bar, and each finished one leaves a line with its seconds; elsewhere there are only the lines.

    The bar is redrawn by the calls alone: a thread that redraws it would run beside the latency measurements
    and disturb them.

    Args:
        console: where to write; stderr by default.

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
        """Say that `done` of `total` pieces of work of a stage are behind us; a total of 0 means unknown."""
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
    """Return bars that go when they stop; stdout stays untouched, as it may carry JSON."""
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
