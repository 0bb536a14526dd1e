"""Findings of a compression: the networks, the plan, and all numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from depthcomp.budget import Budget
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.results.effort import Effort
from depthcomp.results.part_record import PartRecord
from depthcomp.training.finetune import FinetuneRecord
from fx_passes import Plan, SpanChoice
from latency_tables import Environment, LatencyTable, Timing

__all__ = ["Findings", "FrontierPoint", "SpanRecord"]


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A plan that no other beats in both predicted latency and importance.

    Attributes:
        predicted_ms: latency of the whole network, predicted by the calibrated table.
        loss: importance of the plan, the sum over its choices.
        plan: the plan.
    """

    predicted_ms: float
    loss: float
    plan: Plan


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """What the chosen plan does with one span.

    Attributes:
        choice: the choice.
        modules: the user's modules that the span covers, in words.
        convolutions: number of convolutions in the span.
        kept_ms: latency of the original span, by the table.
        new_ms: latency of the body in its place, by the table; 0 for a dropped span.
        loss: importance of the choice.
        details: what it does to modules inside the span, in words; may be empty.
    """

    choice: SpanChoice
    modules: str
    convolutions: int
    kept_ms: float
    new_ms: float
    loss: float
    details: str = ""


@dataclass(frozen=True, repr=False)
class Findings:
    """A compressed network and the numbers behind it. Latencies are in ms, for one forward of the example's batch size.

    Attributes:
        model: the merged network, an fx.GraphModule in evaluation mode.
        trainable: the linearised form of the same function, for fine-tuning.
        plan: the choices for all spans that are not kept.
        frontier: all plans worth considering, fastest first.
        budget: the requested budget.
        budget_ms: the budget in ms.
        original_timing: timing of the whole original, measured side by side with `measured_timing`.
        measured_timing: timing of the whole `model`.
        predicted_ms: prediction of the calibrated table for `plan`, made before the measurement.
        loss: divergence from the original (KL in nats for class scores). It is estimated by refits of `plan` on images
            that their weights have not seen; `model` itself is fitted on all of `data`.
        rank_correlation: Spearman's correlation between importance and true loss of the whole plans that were tried;
            None for fewer than three plans, or where all were scored alike.
        original_depth: convolutions on the longest path of the original.
        depth: convolutions on the longest path of `model`.
        spans: what the plan does to each span.
        refusals: spans that cannot be compressed.
        warnings: notes for the user.
        environment: where the latencies were measured.
        table: the latency table, with the line learnt from sums to whole networks.
        example_inputs: inputs that the network was captured and measured with.
        seed: seed of everything random.
        seconds: wall time of each stage.
        free_merges: merges without loss, done first, of spans that compute a single convolution; `plan` is for the
            network after them.
        importance: the losses of all scored choices, with how they were found and the seconds that took.
        original: the original network as measured, its norms folded; the teacher in fine-tuning.
        finetuned: record of the fine-tuning, if any; `model` and `trainable` are then tuned, and `loss` is from before.
        method: name of the method that chose the plan.
        effort: how many choices, fits, plans and networks were tried; None where it was not counted.
        judged_by: what `loss` is, in words; "" where that was not recorded.
        excluded: paths of the modules that the user excluded; they stay as they are.
        part: where a part of a whole network was compressed, which one, and the latencies of the whole.
        whole: where a part was compressed, a copy of the whole with `model` in the part's place; it is not saved.
        tuned_before: records of earlier fine-tunings, in order; each continued from the one before, and `finetuned`
            from the last.
    """

    model: fx.GraphModule
    trainable: fx.GraphModule
    plan: Plan
    frontier: tuple[FrontierPoint, ...]
    budget: Budget
    budget_ms: float
    original_timing: Timing
    measured_timing: Timing
    predicted_ms: float
    loss: float
    rank_correlation: float | None
    original_depth: int
    depth: int
    spans: tuple[SpanRecord, ...]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    environment: Environment
    table: LatencyTable
    example_inputs: tuple[Tensor, ...]
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    free_merges: Plan = field(default_factory=Plan)
    importance: ImportanceTable = field(default_factory=lambda: ImportanceTable({}))
    original: fx.GraphModule | None = None
    finetuned: FinetuneRecord | None = None
    method: str = "depthcomp"
    tuned_before: tuple[FinetuneRecord, ...] = ()
    effort: Effort | None = None
    judged_by: str = ""
    excluded: tuple[str, ...] = ()
    part: PartRecord | None = None
    whole: nn.Module | None = None

    @property
    def original_ms(self) -> float:
        """Measured latency of the original network, the median of its rounds."""
        return self.original_timing.median_ms

    @property
    def measured_ms(self) -> float:
        """Measured latency of the compressed network, the median of its rounds."""
        return self.measured_timing.median_ms

    @property
    def speedup(self) -> float:
        """Measured latency of the original, divided by the measured latency of the compressed network."""
        return self.original_ms / self.measured_ms

    @property
    def residual(self) -> float | None:
        """Residual of the predicting line, as a share of the original's latency.

        It is the root mean square over all measured networks, this one included; None where the table has no line.
        """
        line = self.table.calibration
        return None if line is None else line.residual_ms / self.original_ms
