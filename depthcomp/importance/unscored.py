"""Importance of methods that need no losses: every choice costs nothing."""

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
    """No loss for any choice, found without any work."""

    @property
    def method(self) -> str:
        """The name of this way to score."""
        return NO_METHOD

    @property
    def settings(self) -> Settings:
        """Nothing to set."""
        return {}

    @property
    def most_images(self) -> int | None:
        """As many images as their size asks for: the chosen plan is fitted on them."""
        return None

    @property
    def memory_mib(self) -> int:
        """What fits of the chosen plans may take in memory, in MiB: the default."""
        return MEMORY_MIB

    @property
    def unshareable(self) -> str:
        """Why there are no shards."""
        return "scores nothing, so nothing is left to share"

    def rules(self, *, refit_kept: bool) -> str:
        """Return nothing: there are no scores."""
        return ""

    def score_all(self, context: ScoringContext) -> Scored:
        """Return a loss of 0 for each choice."""
        losses = dict.fromkeys((candidate.choice for candidate in context.candidates), 0.0)
        return Scored(ImportanceTable(losses, method=self.method), losses, context.notes)

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Refuse: nothing is scored.

        Raises:
            DepthCompError: always.
        """
        raise DepthCompError(f"importance {self.unshareable}")
