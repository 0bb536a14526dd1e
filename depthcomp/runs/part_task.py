"""Compression of a part of a whole: how its plans are judged, and what the whole gains.

Where the whole can be captured, its graph is compressed with everything outside the part kept, so that the whole's
outputs judge. Elsewhere the part is compressed alone, on what the whole feeds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from depthcomp.data.batches import MAX_SMALL_IMAGES
from depthcomp.data.example import infer_example
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import DataError, DepthCompError
from depthcomp.latency.timing import NetworkTimer
from depthcomp.preparation import Prepared
from depthcomp.results.part_record import PartRecord
from depthcomp.runs.task import CompressionTask
from depthcomp.sources.part_of_whole import PartOfWhole
from depthcomp_errors.first_line import first_line
from fx_passes import capture, fold_batch_norms
from fx_passes.graph_part import find_part
from latency_tables import AnyBackend

__all__ = ["PartTask"]


@dataclass(frozen=True, slots=True)
class PartTask:
    """The compression of a part of a whole.

    Attributes:
        part: the part.
        task: the task to carry out: on the whole, or on the part alone.
        example: the whole's example input; None where the whole cannot be captured.
        obstacle: why the whole's outputs cannot judge; empty where they do.
        names: names of the whole's inputs.
    """

    part: PartOfWhole
    task: CompressionTask
    example: Inputs | None
    obstacle: str
    names: InputNames = ONE_IMAGE

    @classmethod
    def of(cls, task: CompressionTask, part: PartOfWhole) -> PartTask:
        """Return how to carry out a task, whose example and data are the whole's, on a part.

        Raises:
            CaptureError: the whole fails on the data, or the part reads something other than one batch of images.
            DataError: the data cannot be read, or are empty.
        """
        inside = part.inside(task.exclude)  # refuses the part itself
        task = replace(task, data=_listed(task.data), val_data=_listed(task.val_data))
        names = InputNames.of(part.whole, task.example_inputs)
        example, obstacle = _obstacle(task, part, names)
        if not obstacle:
            return cls(part, replace(task, model=part.whole, part=part.name), example, "", names)
        alone = replace(
            task, model=part.module, example_inputs=part.example(task.example_inputs),
            data=part.data(task.data, "data"), val_data=part.data(task.val_data, "val_data"), exclude=inside,
        )  # fmt: skip
        return cls(part, alone, example, obstacle, names)

    def told(self, prepared: Prepared) -> Prepared:
        """Add the notes on the part's data, and the name of the part that is judged alone, to what is prepared."""
        if not self.obstacle:
            return prepared
        name, judged_by = self.part.name, f"{prepared.judged_by}, of {self.part.name} alone"
        excluded = tuple(f"{name}.{path}" for path in prepared.excluded)
        return replace(prepared, judged_by=judged_by, excluded=excluded, notes=(*self.part.notes, *prepared.notes))

    def for_tuning(self, task: CompressionTask) -> CompressionTask:
        """Return a readable task with what the whole feeds the part as its data, to train the part on.

        Raises:
            CaptureError, DataError: as for `of`.
        """
        if self.obstacle:
            return task
        data, val_data = self.part.data(task.data, "data"), self.part.data(task.val_data, "val_data")
        return replace(task, data=data, val_data=val_data)

    def record(self, whole: nn.Module, backend: AnyBackend, seed: int) -> PartRecord:
        """Return the latencies of the whole before and after, or why it has none.

        Args:
            whole: the whole with the compressed part.
            backend: the backend that measures.
            seed: seed of the order of measurements.
        """
        record = PartRecord(self.part.name, judged_alone=self.obstacle)
        if self.example is None:
            return replace(record, unmeasured=self.obstacle)
        try:
            before, after = (capture(each, self.names.given(self.example)) for each in (self.part.whole, whole))
            for each in (before, after):
                fold_batch_norms(each)
            first, second = NetworkTimer(before, self.example.tensors, backend, seed=seed).compare(after)
        except DepthCompError as error:
            return replace(record, unmeasured=first_line(error))
        return replace(record, original_timing=first, measured_timing=second)


def _obstacle(task: CompressionTask, part: PartOfWhole, names: InputNames) -> tuple[Inputs | None, str]:
    """Return the whole's example where it can be captured, and why its outputs cannot judge; empty where they can."""
    try:
        captured, example = _captured(task, part.whole, names)
    except DepthCompError as error:
        reason = "its data hold no batches (n, c, h, w)" if isinstance(error, DataError) else first_line(error)
        return None, f"{type(part.whole).__name__} cannot be captured: {reason}"
    try:
        find_part(captured, part.name, capture(part.module, part.read(names.given(example))))
    except DepthCompError as error:
        return example, first_line(error)
    return example, ""


def _captured(task: CompressionTask, whole: nn.Module, names: InputNames) -> tuple[fx.GraphModule, Inputs]:
    readable = replace(task, model=whole).with_readable_data()
    example, _, _ = infer_example(whole, task.example_inputs, readable.data, names)
    return capture(whole, names.given(example)), example


def _listed(data: Any) -> Any:
    """Return data that can be read more than once."""
    return list(itertools.islice(data, MAX_SMALL_IMAGES)) if isinstance(data, Iterator) else data
