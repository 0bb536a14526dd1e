"""What a compression found: the networks, the plan, and every number that it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from depthcomp.budget import Budget
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Refusal
from depthcomp.training.finetune import FinetuneRecord
from fx_passes import Plan, SpanChoice
from latency_tables import Environment, LatencyTable, Timing

__all__ = ["Findings", "FrontierPoint", "SpanRecord"]


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A plan that no other beats in both predicted latency and importance.

    Attributes:
        predicted_ms: latency of the whole network as the calibrated table predicts it.
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
        modules: the user's modules that stood there, in words.
        convolutions: how many convolutions stood there.
        kept_ms: latency of the span as it was, by the table.
        new_ms: latency of what takes its place, by the table; 0 for a dropped span.
        loss: importance of the choice.
    """

    choice: SpanChoice
    modules: str
    convolutions: int
    kept_ms: float
    new_ms: float
    loss: float


@dataclass(frozen=True, repr=False)
class Findings:
    """A compressed network with its evidence. Latencies are in ms, of one forward at the example's batch size.

    Attributes:
        model: the merged network, an fx.GraphModule in evaluation mode.
        trainable: the linearised form of the same function, for fine-tuning.
        plan: the choices for all spans that are not kept.
        frontier: all plans worth considering, fastest first.
        budget: what was asked for.
        budget_ms: the same in ms.
        original_timing: the original, measured whole, side by side with `measured_timing`.
        measured_timing: `model`, measured whole.
        predicted_ms: what the calibrated table predicted for `plan` before it was measured.
        loss: divergence from the original (KL in nats for class scores), estimated by refits of `plan` on images that
            their weights have not seen; `model` itself is fitted on all of `data`.
        rank_correlation: Spearman's, between importance and true loss of the whole plans that were tried; None
            where fewer than three were, or all were scored alike.
        original_depth: convolutions on the longest path of the original.
        depth: convolutions on the longest path of `model`.
        spans: what the plan does, span by span.
        refusals: spans that cannot be compressed.
        warnings: what the user should know about how this was made.
        environment: where it was measured.
        table: the latency table that was used, with the line from sums to whole networks that was learnt.
        example_inputs: the inputs that the network was captured and measured with.
        seed: the seed of everything random.
        seconds: wall time of each stage.
        free_merges: spans of the original that were one convolution already and were merged first, at no loss;
            `plan` is for the network after that.
        importance: the loss of every choice that was scored, how it was found and what that cost in seconds.
        original: the network before, its norms folded, as it was measured; the teacher in fine-tuning.
        finetuned: what fine-tuning came to, where it was asked for; `model` and `trainable` are its outcome then, and
            `loss` is still that before it.
        method: how the plan was chosen.
        tuned_before: what earlier fine-tunings came to, each of which the next went on from, `finetuned` last.
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
        """How many times as fast as the original the compressed network is, both measured."""
        return self.original_ms / self.measured_ms

    @property
    def residual(self) -> float | None:
        """How far the measured networks lie from the line that predicts them, as a share of the original's latency.

        The root mean square over all networks that were measured, this one included; None where the table has no
        line.
        """
        line = self.table.calibration
        return None if line is None else line.residual_ms / self.original_ms
