"""Wording that reports and the terminal share: latencies, environments, deeds and verdicts as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fx_passes.kinds import kind_names, kind_of, kinds

if TYPE_CHECKING:
    from depthcomp.results.findings import Findings, SpanRecord
    from depthcomp.results.part_record import PartRecord
    from depthcomp.training.finetune import FinetuneRecord
    from fx_passes import SpanChoice
    from latency_tables import Environment

__all__ = [
    "deed",
    "deeds",
    "duration",
    "line_residual",
    "milliseconds",
    "percent",
    "place",
    "tuning",
    "verdict",
    "where",
    "whole_latency",
]

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


def duration(seconds: float) -> str:
    """Return a duration as text, in whole seconds or from two minutes on in minutes.

    Example:
        >>> duration(95.2), duration(347.0)
        ('95 s', '6 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def milliseconds(ms: float) -> str:
    """Return a latency as text: two decimals from 1 ms on, three below.

    Example:
        >>> milliseconds(12.844), milliseconds(0.1234)
        ('12.84 ms', '0.123 ms')
    """
    return f"{ms:.2f} ms" if abs(ms) >= 1 else f"{ms:.3f} ms"


def whole_latency(part: PartRecord) -> tuple[str, str, str]:
    """Return a row on the whole network around a compressed part: its name, and its latency before and after."""
    what = f"the whole network around {part.module}"
    if part.original_timing is None or part.measured_timing is None:
        return what, "not measured", part.unmeasured
    return what, milliseconds(part.original_timing.median_ms), milliseconds(part.measured_timing.median_ms)


def percent(share: float) -> str:
    """Return a relative difference as text, signed.

    Example:
        >>> percent(0.0187), percent(-0.25)
        ('+1.9 %', '-25.0 %')
    """
    return f"{100 * share:+.1f} %"


def place(result: Findings) -> str:
    """Return where a result was measured: library, device, threads, precision and batch size."""
    return f"{where(result.environment)}, {result.environment.precision}, batch {len(result.example_inputs[0])}"


def where(here: Environment) -> str:
    """Return the library, the device and the threads of an environment."""
    library = f"{_BACKENDS.get(here.backend, here.backend)} {here.backend_version}"
    return f"{library}, {here.device}, {here.threads} thread{'' if here.threads == 1 else 's'}"


def line_residual(result: Findings) -> str:
    """Return the residual of the predicting line, and over how many networks."""
    line, residual = result.table.calibration, result.residual
    return "not known" if line is None or residual is None else f"{100 * residual:.1f} % over {line.n} networks"


def verdict(result: Findings) -> str:
    """Return whether the measured latency is within the budget, and by how much."""
    gap = milliseconds(abs(result.budget_ms - result.measured_ms))
    return f"met, {gap} to spare" if result.measured_ms <= result.budget_ms else f"missed by {gap}"


def deed(choice: SpanChoice) -> str:
    """Return words for a choice in the past tense, such as "fitted 3x3"."""
    return kind_of(choice).describe(choice)


def deeds(spans: Iterable[SpanRecord]) -> str:
    """Return the number of spans for each deed of a plan."""
    counts = Counter(record.choice.kind for record in spans)
    return ", ".join(f"{counts[each.name]} {each.done}" for each in kinds(kind_names()) if counts[each.name]) or "none"


def tuning(record: FinetuneRecord) -> str:
    """Return which network fine-tuning chose, of how many epochs and seconds."""
    epochs = f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}"
    return f"best: {record.best}; {epochs} in {record.seconds:.0f} s"
