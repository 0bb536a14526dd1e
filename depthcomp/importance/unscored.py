"""Importance for methods that need no losses: every loss is 0."""

from __future__ import annotations

from dataclasses import dataclass

from depthcomp.errors import DepthCompError
from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import NO_METHOD, ImportanceTable, Scored
from latency_tables.fleet.work import Shard

__all__ = ["Unscored"]


@dataclass(frozen=True, slots=True)
class Unscored:
    """An importance without scores: every loss is 0."""

    @property
    def method(self) -> str:
        """Name of the importance."""
        return NO_METHOD

    @property
    def settings(self) -> Settings:
        """No settings."""
        return {}

    @property
    def most_images(self) -> int | None:
        """None: the number of images follows from their size, and the chosen plan is fitted on them."""
        return None

    @property
    def memory_mib(self) -> int:
        """Memory that the refits of chosen plans may use, in MiB: the default."""
        return MEMORY_MIB

    @property
    def unshareable(self) -> str:
        """Reason why there are no shards."""
        return "scores nothing, so shards have nothing to do"

    def rules(self, *, refit_kept: bool) -> str:
        """Return "": there are no scores."""
        return ""

    def score_all(self, context: ScoringContext) -> Scored:
        """Return a loss of 0 for each choice."""
        losses = dict.fromkeys((candidate.choice for candidate in context.candidates), 0.0)
        return Scored(ImportanceTable(losses, method=self.method), losses, context.notes)

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Refuse to score a part: nothing is scored.

        Raises:
            DepthCompError: always.
        """
        raise DepthCompError(f"importance {self.unshareable}")
