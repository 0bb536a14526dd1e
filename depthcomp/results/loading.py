"""Loading of a saved result, from which later commands continue."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor, fx

from depthcomp.budget import Budget
from depthcomp.errors import ArtifactError
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.result import CompressionResult
from depthcomp.results.saving import IMPORTANCE, NUMBERS, ORIGINAL, PLAN, TABLE, TRAINABLE
from depthcomp.results.stored_network import load, load_network
from depthcomp.results.stored_numbers import StoredNumbers, StoredSpan, read_numbers
from fx_passes import Plan
from fx_passes.shapes import propagate_shapes
from latency_tables import LatencyTable

__all__ = ["load_result", "load_trainable", "saved_inputs"]

_SEED = 0


def load_result(directory: str | os.PathLike[str]) -> CompressionResult:
    """Return the result that `save_result` wrote to a folder.

    Its example inputs are random, with the saved shapes. Refusals are ordered by reason. A loss that was not finite is
    NaN. `original` is None where its folder was deleted.

    Raises:
        ArtifactError: a file is missing, broken or of another version, or the trainable form was deleted.
        PlanError: the plan is broken.
        TableError: a table is broken.
    """
    folder = Path(directory)
    model = load(folder)
    numbers, example = read_numbers(folder / NUMBERS), saved_inputs(folder)
    return CompressionResult(
        model=model,
        trainable=load_trainable(folder, example),
        plan=_plan(folder),
        frontier=_frontier(numbers),
        budget=Budget(numbers.budget.value, numbers.budget.unit),
        budget_ms=numbers.budget_ms,
        original_timing=numbers.original.timing(),
        measured_timing=numbers.measured.timing(),
        predicted_ms=numbers.predicted_ms,
        loss=_number(numbers.loss),
        rank_correlation=numbers.rank_correlation,
        original_depth=numbers.original_depth,
        depth=numbers.depth,
        spans=tuple(map(_span, numbers.spans)),
        refusals=tuple(
            Refusal(span.entry, span.exit, span.modules, group.reason, span.at)
            for group in numbers.refusals
            for span in group.spans
        ),
        warnings=tuple(numbers.warnings),
        environment=numbers.environment,
        table=LatencyTable.load(folder / TABLE),
        example_inputs=example,
        seed=numbers.seed,
        seconds=dict(numbers.seconds),
        free_merges=Plan.of(numbers.free_merges),
        importance=ImportanceTable.load(folder / IMPORTANCE),
        original=load_network(folder / ORIGINAL) if (folder / ORIGINAL).is_dir() else None,
        finetuned=numbers.finetuned,
        method=numbers.method,
        tuned_before=tuple(numbers.tuned_before),
        effort=numbers.effort,
        judged_by=numbers.judged_by,
        excluded=tuple(numbers.excluded),
        part=None if numbers.part is None else numbers.part.record(),
    )


def saved_inputs(directory: Path) -> tuple[Tensor, ...]:
    """Return random inputs with the shapes and types that a saved network was compressed with; integers are 0.

    Raises:
        ArtifactError: result.json is missing or does not hold them.
    """
    path = directory / NUMBERS
    try:
        stored = json.loads(path.read_bytes())["example_inputs"]
        generator = torch.Generator().manual_seed(_SEED)
        return tuple(_drawn(each["shape"], _dtype(each["dtype"]), generator) for each in stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} does not hold the shapes of the inputs ({type(error).__name__}: {error}); give the folder that "
            "CompressionResult.save wrote"
        ) from error


def _drawn(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return values that any network takes: an integer may be an index."""
    if dtype.is_floating_point or dtype == torch.bool:
        drawn = torch.randn(shape, generator=generator)
        return drawn > 0 if dtype == torch.bool else drawn.to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no tensor type")
    return dtype


def load_trainable(folder: Path, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return the trainable form in a folder, its nodes annotated with the shapes for the example.

    Raises:
        ArtifactError: the trainable form is missing, broken or of another version.
    """
    if not (folder / TRAINABLE).is_dir():
        raise ArtifactError(f"{folder} has no folder {TRAINABLE}, which fine-tuning needs; compress the model anew")
    trainable = load_network(folder / TRAINABLE)
    propagate_shapes(trainable, example)
    return trainable


def _span(stored: StoredSpan) -> SpanRecord:
    return SpanRecord(
        stored.choice, stored.modules, stored.convolutions, stored.kept_ms, stored.new_ms, _number(stored.loss),
        stored.details,
    )  # fmt: skip


def _plan(folder: Path) -> Plan:
    try:
        return Plan.from_json((folder / PLAN).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {folder / PLAN}: {error.strerror}; compress the model anew") from error


def _frontier(numbers: StoredNumbers) -> tuple[FrontierPoint, ...]:
    choices = dict(enumerate(numbers.frontier_choices))
    try:
        plans = [Plan.of([choices[place] for place in point.plan]) for point in numbers.frontier]
    except KeyError as error:
        raise ArtifactError(f"result.json has no choice number {error}; compress the model anew") from error
    return tuple(
        FrontierPoint(point.predicted_ms, _number(point.loss), plan)
        for point, plan in zip(numbers.frontier, plans, strict=True)
    )


def _number(stored: float | None) -> float:
    return math.nan if stored is None else stored
