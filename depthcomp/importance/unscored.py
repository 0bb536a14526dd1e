"""Importance for methods that need no losses: every loss is 0."""

from __future__ import annotations

from dataclasses import dataclass

from depthcomp.importance.context import ScoringContext
from depthcomp.importance.protocol import Importance
from depthcomp.importance.scored import Scored
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import NO_METHOD, ImportanceTable

__all__ = ["Unscored"]


@dataclass(frozen=True, slots=True)
class Unscored(Importance):
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
    def unshareable(self) -> str:
        """Reason why there are no shards."""
        return "scores nothing, so shards have nothing to do"

    def score_all(self, context: ScoringContext) -> Scored:
        """Return a loss of 0 for each choice."""
        losses = dict.fromkeys((candidate.choice for candidate in context.candidates), 0.0)
        return Scored(ImportanceTable(losses, method=self.method), losses, context.notes)
