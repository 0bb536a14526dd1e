"""Importance by closed-form fits, judged by the curvature of the network's loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.fitting.speed import Speed
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.curvature import curvature, foretold_seconds, score_part
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.protocol import Importance
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scored import Scored, scored
from depthcomp.importance.settings import Settings, require_counts
from latency_tables.fleet.work import Shard

__all__ = ["CurvatureImportance"]

ALGORITHM = 6  # raised by each change that gives other scores for equal settings


@dataclass(frozen=True, slots=True)
class CurvatureImportance(Importance):
    """Importance by closed-form fits: the rise of the loss on unseen images, estimated from its curvature.

    Choices that cannot enter the latency-loss frontier are left out, and those on it get true losses.

    Attributes:
        draws: number of random probes of the output for each image; each takes a backward pass.
        memory_mib: memory limit for the sums and solutions of fits, and for the gradients of a batch, in MiB; see
            `CalibratedImportance`.
        images: most images of `data` to read; see `CalibratedImportance`.
    """

    draws: int = 4
    memory_mib: int = MEMORY_MIB
    images: int | None = None

    def __post_init__(self) -> None:
        require_counts(self, "draws", "memory_mib", *(() if self.images is None else ("images",)))

    @property
    def method(self) -> str:
        """Name of the importance."""
        return "curvature"

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
        return f"{ALGORITHM}, consumers refitted" if refit_kept else f"{ALGORITHM}"

    def foretell(self, context: ScoringContext, speed: Speed) -> float:
        """Return about how many seconds `score_all` will take; less where a journal has scores already."""
        return foretold_seconds(context, speed)

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices; for errors see `Importance`."""
        journal, network = self._journal(context), context.prepared.network
        found = curvature(context, journal, self.draws)
        if found.unestimated:
            exits = network.words(dict.fromkeys(choice.exit for choice in found.unestimated))
            note = (
                f"{len(found.unestimated)} choices were scored by true losses, as no finite gradient leads from the "
                f"network's output to {exits}"
            )
            context = replace(context, notes=(*context.notes, note))
        return scored(
            context, found.losses, journal,
            method=self.method, settings=self.settings, check=found.check, profiting=found.profiting,
        )  # fmt: skip

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Add the scores of a part of the choices to the journal, and return the number of the part's entries."""
        return score_part(context, self._journal(context), self.draws, part)

    def _journal(self, context: ScoringContext) -> ScoreJournal:
        """Return the journal of the scores of these choices; the places of gradients depend on all of them."""
        choices = (str(candidate.choice) for candidate in context.candidates)
        refits = f"consumers refitted: {context.refit_kept}"
        return context.journal(ALGORITHM, repr(self), str(context.seed), refits, *choices)


PRESETS.register("curvature", CurvatureImportance())
