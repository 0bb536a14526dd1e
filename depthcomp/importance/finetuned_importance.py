"""Importance by a little training of each choice, as the papers find it, with the papers' settings as presets.

compress_depth(model, "70%", data=loader, importance="kim23")
compress_depth(model, "70%", data=loader, importance=replace(KIM23, steps=200))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import Scored, scored
from depthcomp.importance.trained import TrainingSettings, entries_of, finetuned, losses_of
from latency_tables.fleet.work import Shard

__all__ = ["KIM23", "LAYERMERGE", "FinetunedImportance"]

ALGORITHM = 3  # rises when equal settings come to give other scores


@dataclass(frozen=True, slots=True)
class FinetunedImportance(TrainingSettings):
    """Each choice alone is trained for some steps and scored on held-out images, as Kim et al. and LayerMerge do.

    The fields are those of `TrainingSettings`.
    """

    @property
    def method(self) -> str:
        """The name of this way to score."""
        return "finetuned"

    @property
    def settings(self) -> Settings:
        """The fields, by name."""
        return asdict(self)

    @property
    def most_images(self) -> int | None:
        """How many images are read at most."""
        return self.images

    @property
    def memory_mib(self) -> int:
        """What fits of the chosen plans may take in memory, in MiB: the default, as scoring fits nothing."""
        return MEMORY_MIB

    @property
    def unshareable(self) -> str:
        """Nothing: parts can be scored apart."""
        return ""

    def rules(self, *, refit_kept: bool) -> str:
        """Return by which rules it scores; training leaves refits of kept convolutions out."""
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
        """Put the scores of a part of the choices into the journal; return how many entries that are."""
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
"""Kim et al., ICML 2023: SGD with momentum 0.9 and weight decay 1e-5, accuracy on a held-out part of the training data,
single layers initialised anew, less 1.6 times their mean (their alpha for MobileNetV2-1.0; 1.2 and 1.4 for others).
Theirs is an epoch of ImageNet in batches of 256 from a learning rate of 0.1; here, steps that a CPU can bear."""

LAYERMERGE = PRESETS.register("layermerge", FinetunedImportance(score="exponential"))
"""LayerMerge, ICML 2024: the same training and score, and exp of the change of accuracy."""
