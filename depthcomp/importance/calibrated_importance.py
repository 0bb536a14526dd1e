"""Importance by closed-form fits, without training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.importance.calibrated import calibrated, score_part
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.protocol import Importance
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scored import Scored, scored
from depthcomp.importance.settings import Settings, require_counts
from latency_tables.fleet.work import Shard

__all__ = ["CalibratedImportance"]

ALGORITHM = 5  # raised by each change that gives other scores for equal settings


@dataclass(frozen=True, slots=True)
class CalibratedImportance(Importance):
    """Importance by closed-form fits: the rise of the loss on images that a fit has not seen.

    Attributes:
        memory_mib: memory limit for the sums and solutions of fits, in MiB, for scores and for refits of chosen plans;
            the images' tensors come on top. Where all sums exceed it, the images pass through the network several
            times, with an equal result. A single fit may use a third of it. A kernel that needs more is solved as
            fewer patterns than pixels (`depthcomp.fitting.memory`), and `result.warnings` counts those fits. With
            images in three folds the default solves up to 2,896 unknowns whole. A 3x3 kernel over 320 channels has
            2,880 unknowns. Over 512 channels the default has room for 5 patterns; all 9 pixels need 3,888 MiB. Memory
            grows with the square of the unknowns, time with the cube.
        images: most images of `data` to read. None reads 512; of images smaller than 224x224, as many as have the
            pixels of 512 such images, up to 4,096.
    """

    memory_mib: int = MEMORY_MIB
    images: int | None = None

    def __post_init__(self) -> None:
        require_counts(self, "memory_mib", *(() if self.images is None else ("images",)))

    @property
    def method(self) -> str:
        """Name of the importance."""
        return "calibrated"

    @property
    def settings(self) -> Settings:
        """The fields, by name."""
        return asdict(self)

    @property
    def most_images(self) -> int | None:
        """Most images of `data` to read; None to choose by their size."""
        return self.images

    def rules(self, *, refit_kept: bool) -> str:
        """Return the version of the scoring rules; refits of kept layers change the scores."""
        return f"{ALGORITHM}, readers refitted" if refit_kept else f"{ALGORITHM}"

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices; for errors see `Importance`."""
        journal = self._journal(context)
        found = calibrated(
            context.prepared.network, context.candidates, context.prepared.calibration, context.savings_ms,
            refit_kept=context.refit_kept, seed=context.seed, progress=context.progress, journal=journal,
            memory=context.memory,
        )  # fmt: skip
        return scored(
            context, found.losses, journal, method=self.method, settings=self.settings, profiting=found.profiting
        )

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Add the scores of a part of the choices to the journal, and return the number of the part's entries."""
        return score_part(
            context.prepared.network, context.candidates, context.prepared.calibration, self._journal(context), part,
            refit_kept=context.refit_kept, seed=context.seed, progress=context.progress, memory=context.memory,
        )  # fmt: skip

    def _journal(self, context: ScoringContext) -> ScoreJournal:
        """Return the journal of the scores of these choices."""
        choices = (str(candidate.choice) for candidate in context.candidates)
        refits = f"readers refitted: {context.refit_kept}"
        return context.journal(ALGORITHM, repr(self), str(context.seed), refits, *choices)


PRESETS.register("calibrated", CalibratedImportance())
