"""Importance by short training of each choice, with the settings of two papers as presets.

compress_depth(model, "70%", data=loader, importance="kim23")
compress_depth(model, "70%", data=loader, importance=replace(KIM23, steps=200))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from depthcomp.importance.context import ScoringContext
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.protocol import Importance
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scored import Scored, scored
from depthcomp.importance.settings import Settings
from depthcomp.importance.trained import TrainingSettings, entries_of, finetuned, losses_of
from latency_tables.fleet.work import Shard

__all__ = ["KIM23", "LAYERMERGE", "FinetunedImportance"]

ALGORITHM = 3  # raised by each change that gives other scores for equal settings


@dataclass(frozen=True, slots=True)
class FinetunedImportance(TrainingSettings, Importance):
    """Importance by training each choice alone and scoring it on held-out images, as Kim et al. and LayerMerge do.

    The fields are those of `TrainingSettings`.
    """

    @property
    def method(self) -> str:
        """Name of the importance."""
        return "finetuned"

    @property
    def settings(self) -> Settings:
        """The fields, by name."""
        return asdict(self)

    @property
    def most_images(self) -> int | None:
        """Most images of `data` to read."""
        return self.images

    def rules(self, *, refit_kept: bool) -> str:
        """Return the version of the scoring rules; refits of kept layers play no part."""
        return f"{ALGORITHM}"

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices; for errors see `Importance`."""
        prepared, journal = context.prepared, self._journal(context)
        finetuned(
            prepared.captured, context.candidates, prepared.calibration, self, journal,
            seed=context.seed, progress=context.progress,
        )  # fmt: skip
        losses = losses_of(prepared.captured, context.candidates, self, journal.scores)
        return scored(context, losses, journal, method=self.method, settings=self.settings)

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Add the scores of a part of the choices to the journal, and return the number of the part's entries."""
        prepared = context.prepared
        entries = sorted(entries_of(prepared.captured, context.candidates, self))[part.index :: part.count]
        finetuned(
            prepared.captured, context.candidates, prepared.calibration, self, self._journal(context),
            entries=entries, seed=context.seed, progress=context.progress,
        )  # fmt: skip
        return len(entries)

    def _journal(self, context: ScoringContext) -> ScoreJournal:
        return context.journal(ALGORITHM, repr(self), str(context.seed))


KIM23 = PRESETS.register("kim23", FinetunedImportance(score="normalized", alpha=1.6))
"""Settings of Kim et al., ICML 2023: SGD with momentum 0.9 and weight decay 1e-5, accuracy on held-out training data.
The mean score of single layers, initialised anew, is subtracted 1.6 times, their alpha for MobileNetV2-1.0 (1.2 and 1.4
for others). They train an epoch of ImageNet in batches of 256 from a learning rate of 0.1; these steps suit a CPU."""

LAYERMERGE = PRESETS.register("layermerge", FinetunedImportance(score="exponential"))
"""Settings of LayerMerge, ICML 2024: training as for Kim et al., and exp of the change of accuracy as score."""
