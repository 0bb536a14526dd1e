"""Numbers of a result as JSON, the content of result.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf
from torch import Tensor

from depthcomp.errors import ArtifactError
from depthcomp.importance.registry import preset_name
from depthcomp.results.effort import Effort
from depthcomp.results.part_record import PartRecord
from depthcomp.training.finetune import FinetuneRecord
from depthcomp_files import JsonFormat
from fx_passes import SpanChoice
from fx_passes.kinds import decode_choice, encode_choice
from fx_passes.kinds.codec import from_version_1
from latency_tables import Calibration, Environment, Timing

if TYPE_CHECKING:
    from depthcomp.importance.table import ImportanceTable
    from depthcomp.preparation import Refusal
    from depthcomp.results.findings import Findings, FrontierPoint, SpanRecord

__all__ = ["StoredNumbers", "StoredSpan", "read_numbers", "result_json"]

SCHEMA_VERSION = 3


StoredChoice = Annotated[SpanChoice, BeforeValidator(decode_choice), InstanceOf[SpanChoice]]
"""A choice of any kind, as `fx_passes.kinds` stores it."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Budget(_Stored):
    value: float
    unit: Literal["%", "ms", "x"]
    text: str


class StoredTiming(_Stored):
    """The timing of a network; `rounds_ms`, `n` and `drifted_rounds` determine the other fields."""

    ms: float
    least_ms: float
    spread: float
    n: int
    drifted_rounds: int
    rounds_ms: tuple[float, ...]

    def timing(self) -> Timing:
        """Return the timing that was stored."""
        return Timing(self.rounds_ms, self.n, self.drifted_rounds)


class _Part(_Stored):
    module: str
    whole_original: StoredTiming | None
    whole_measured: StoredTiming | None
    unmeasured: str
    judged_alone: str

    def record(self) -> PartRecord:
        """Return the record that was stored."""
        before, after = (None if each is None else each.timing() for each in (self.whole_original, self.whole_measured))
        return PartRecord(self.module, before, after, self.unmeasured, self.judged_alone)


class _Importance(_Stored):
    kind: str
    method: str
    settings: dict[str, int | float | str | None]
    seconds: float
    choices: int
    check: dict[str, int | float | None] | None = None


class StoredSpan(_Stored):
    """What the plan does with one span."""

    choice: StoredChoice
    modules: str
    convolutions: int
    kept_ms: float
    new_ms: float
    loss: float | None
    details: str = ""


class _RefusedSpan(_Stored):
    entry: str
    exit: str
    modules: str
    at: str


class _Refusals(_Stored):
    reason: str
    count: int
    spans: list[_RefusedSpan]


class _FrontierPoint(_Stored):
    predicted_ms: float
    loss: float | None
    plan: list[Annotated[int, Field(ge=0)]]


class _TensorKind(_Stored):
    shape: list[int]
    dtype: str


class StoredNumbers(_Stored):
    """All numbers of a result, as in result.json; None stands for a number that is not finite.

    Each plan of the frontier is a list of indices into `frontier_choices`, as plans share choices.
    """

    schema_version: Literal[3]
    method: str
    budget: _Budget
    budget_ms: float
    original: StoredTiming
    measured: StoredTiming
    predicted_ms: float
    residual: float | None
    calibration: Calibration | None
    speedup: float
    loss: float | None
    rank_correlation: float | None
    importance: _Importance
    original_depth: int
    depth: int
    free_merges: list[StoredChoice]
    spans: list[StoredSpan]
    refusals: list[_Refusals]
    frontier_choices: list[StoredChoice]
    frontier: list[_FrontierPoint]
    finetuned: FinetuneRecord | None
    tuned_before: list[FinetuneRecord]
    warnings: list[str]
    environment: Environment
    example_inputs: list[_TensorKind]
    seed: int
    seconds: dict[str, float]
    effort: Effort | None = None
    judged_by: str = ""
    excluded: list[str] = []
    part: _Part | None = None


def _from_version_2(content: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the content of a version 2 file, which stores choices with all fields and no names of modules."""
    numbers = ("convolutions", "kept_ms", "new_ms", "loss")
    return {
        **content,
        "free_merges": [from_version_1(choice) for choice in content["free_merges"]],
        "frontier_choices": [from_version_1(choice) for choice in content["frontier_choices"]],
        "spans": [
            {
                "choice": from_version_1({name: value for name, value in span.items() if name not in numbers}),
                "modules": _nodes(span),
                **{name: span[name] for name in numbers},
            }
            for span in content["spans"]
        ],
        "refusals": [
            {**group, "spans": [{**span, "modules": _nodes(span), "at": ""} for span in group["spans"]]}
            for group in content["refusals"]
        ],
    }


def _nodes(span: dict[str, Any]) -> str:
    return f"after {span['entry']}, up to {span['exit']}"


_FORMAT = JsonFormat(
    "result", StoredNumbers, "schema_version", SCHEMA_VERSION, "compress the model anew", has_kind=False,
    error=ArtifactError, upgrades={2: _from_version_2},
)  # fmt: skip


def read_numbers(path: Path) -> StoredNumbers:
    """Return the checked content of a result.json.

    Raises:
        ArtifactError: it cannot be read, is of another version, or is no result.
    """
    return _FORMAT.read(path)


def result_json(result: Findings) -> dict[str, Any]:
    """Return all numbers of a result as plain JSON values; a number that is not finite becomes None."""
    choices = list(dict.fromkeys(choice for point in result.frontier for choice in point.plan))
    places = {choice: place for place, choice in enumerate(choices)}
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "method": result.method,
        "budget": {**asdict(result.budget), "text": str(result.budget)},
        "budget_ms": result.budget_ms,
        "original": _timing(result.original_timing),
        "measured": _timing(result.measured_timing),
        "predicted_ms": result.predicted_ms,
        "residual": result.residual,
        "calibration": None if result.table.calibration is None else asdict(result.table.calibration),
        "speedup": result.speedup,
        "loss": result.loss,
        "rank_correlation": result.rank_correlation,
        "importance": _importance(result.importance),
        "original_depth": result.original_depth,
        "depth": result.depth,
        "free_merges": [encode_choice(choice) for choice in result.free_merges],
        "spans": [_span(record) for record in result.spans],
        "refusals": _refusals_by_reason(result.refusals),
        "frontier_choices": [encode_choice(choice) for choice in choices],
        "frontier": [_frontier_point(point, places) for point in result.frontier],
        "finetuned": None if result.finetuned is None else asdict(result.finetuned),
        "tuned_before": [asdict(record) for record in result.tuned_before],
        "warnings": list(result.warnings),
        "environment": asdict(result.environment),
        "example_inputs": [_tensor_kind(tensor) for tensor in result.example_inputs],
        "seed": result.seed,
        "seconds": dict(result.seconds),
        "effort": None if result.effort is None else asdict(result.effort),
        "judged_by": result.judged_by,
        "excluded": list(result.excluded),
        "part": None if result.part is None else _part(result.part),
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _importance(table: ImportanceTable) -> dict[str, Any]:
    return {
        "kind": preset_name(table),
        "method": table.method,
        "settings": dict(table.settings),
        "seconds": table.seconds,
        "choices": len(table.losses),
        "check": None if table.check is None else asdict(table.check),
    }


def _part(part: PartRecord) -> dict[str, Any]:
    before, after = part.original_timing, part.measured_timing
    return {
        "module": part.module,
        "whole_original": None if before is None else _timing(before),
        "whole_measured": None if after is None else _timing(after),
        "unmeasured": part.unmeasured,
        "judged_alone": part.judged_alone,
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "ms": timing.median_ms,
        "least_ms": timing.ms,
        "spread": timing.spread,
        "n": timing.n,
        "drifted_rounds": timing.drifted,
        "rounds_ms": list(timing.rounds_ms),
    }


def _span(record: SpanRecord) -> dict[str, Any]:
    return {
        "choice": encode_choice(record.choice),
        "modules": record.modules,
        "convolutions": record.convolutions,
        "kept_ms": record.kept_ms,
        "new_ms": record.new_ms,
        "loss": record.loss,
        "details": record.details,
    }


def _refusals_by_reason(refusals: Iterable[Refusal]) -> list[dict[str, Any]]:
    grouped: dict[str, list[dict[str, str]]] = {}
    for refusal in refusals:
        span = {"entry": refusal.entry, "exit": refusal.exit, "modules": refusal.modules, "at": refusal.at}
        grouped.setdefault(refusal.why, []).append(span)
    return [{"reason": reason, "count": len(spans), "spans": spans} for reason, spans in grouped.items()]


def _frontier_point(point: FrontierPoint, places: Mapping[SpanChoice, int]) -> dict[str, Any]:
    plan = [places[choice] for choice in point.plan]
    return {"predicted_ms": point.predicted_ms, "loss": point.loss, "plan": plan}


def _tensor_kind(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
