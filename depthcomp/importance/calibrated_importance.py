"""Importance by closed-form fits, without any training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.importance.calibrated import calibrated, score_part
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.settings import Settings, require_counts
from depthcomp.importance.table import Scored, scored
from latency_tables.fleet.work import Shard

__all__ = ["CalibratedImportance"]

ALGORITHM = 3  # rises when equal settings come to give other scores


@dataclass(frozen=True, slots=True)
class CalibratedImportance:
    """Closed-form fits, no training: the rise of the loss on images that a fit has not seen.

    Attributes:
        memory_mib: most memory for the sums of fits and for solving them, in MiB, here and where the chosen plans are
            refitted; the images' tensors come on top. Where it is not enough for all sums at once, the images pass
            through the network several times, with the same result. A single fit may take a third of it. Where that
            is not enough, its kernel is a mixture of fewer patterns than it has pixels (`depthcomp.fitting.memory`),
            and `result.warnings` says of how many choices that is so. With images in three folds the default solves up
            to 2,896 unknowns whole: a 3x3 kernel over 320 channels has 2,880; over 512 channels there is room for 5
            patterns for its 9 pixels, and all 9 take 3,888 MiB. Memory grows with the square of the unknowns, time
            with the cube.
        images: of `data` that are read at most; None for 512, of images smaller than 224x224 for as many as have that
            many pixels together, up to 4,096.
    """

    memory_mib: int = MEMORY_MIB
    images: int | None = None

    def __post_init__(self) -> None:
        require_counts(self, "memory_mib", *(() if self.images is None else ("images",)))

    @property
    def method(self) -> str:
        """The name of this way to score."""
        return "calibrated"

    @property
    def settings(self) -> Settings:
        """The fields, by name."""
        return asdict(self)

    @property
    def most_images(self) -> int | None:
        """How many images are read at most; None for as many as their size asks for."""
        return self.images

    @property
    def unshareable(self) -> str:
        """Nothing: parts can be scored apart."""
        return ""

    def rules(self, *, refit_kept: bool) -> str:
        """Return by which rules it scores: refits of kept convolutions change the scores."""
        return f"{ALGORITHM}, readers refitted" if refit_kept else f"{ALGORITHM}"

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices; for errors see `Importance`."""
        journal = self._journal(context)
        losses = calibrated(
            context.prepared.network, context.candidates, context.prepared.calibration, context.savings_ms,
            refit_kept=context.refit_kept, seed=context.seed, progress=context.progress, journal=journal,
            memory=context.memory,
        )  # fmt: skip
        return scored(context, losses, journal, method=self.method, settings=self.settings)

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Put the scores of a part of the choices into the journal; return how many entries that are."""
        return score_part(
            context.prepared.network, context.candidates, context.prepared.calibration, self._journal(context), part,
            refit_kept=context.refit_kept, seed=context.seed, progress=context.progress, memory=context.memory,
        )  # fmt: skip

    def _journal(self, context: ScoringContext) -> ScoreJournal:
        """Return the journal of these scores; choices that are fitted together share sums, so all of them count."""
        choices = (str(candidate.choice) for candidate in context.candidates)
        refits = f"readers refitted: {context.refit_kept}"
        return context.journal(ALGORITHM, repr(self), str(context.seed), refits, *choices)


PRESETS.register("calibrated", CalibratedImportance())
