"""Importance from a finished table, as in importance.json."""

from __future__ import annotations

from dataclasses import dataclass

from depthcomp.errors import TableError
from depthcomp.fitting.speed import Speed
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.protocol import Importance
from depthcomp.importance.scored import Scored, finite_of
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import ImportanceTable

__all__ = ["StoredImportance"]


@dataclass(frozen=True, slots=True)
class StoredImportance(Importance):
    """Importance that takes the losses from a table.

    Attributes:
        table: the losses.
    """

    table: ImportanceTable

    @property
    def method(self) -> str:
        """Name of the importance that found the losses."""
        return self.table.method

    @property
    def settings(self) -> Settings:
        """Settings of that importance."""
        return self.table.settings

    @property
    def unshareable(self) -> str:
        """Reason why there are no shards."""
        return "is a finished table, so shards have nothing to score"

    def rules(self, *, refit_kept: bool) -> str:
        """Return the version of the rules that found the losses."""
        return self.table.algorithm

    def foretell(self, context: ScoringContext, speed: Speed) -> float:
        """Return that taking losses from a table needs no time."""
        return 0.0

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices in the table; the others are left out, and a note counts them.

        Raises:
            TableError: the table has none of the choices, or less than half of them and is of another network.
        """
        losses, candidates = self.table.losses, context.candidates
        known = {c.choice: losses[c.choice] for c in candidates if c.choice in losses}
        other = self.table.network not in ("", context.network)
        if not known or (other and len(known) < len(candidates) / 2):
            found = f"only {len(known)}" if known else "none"
            raise TableError(
                f"the importance table has {len(losses)} choices, but {found} of the {len(candidates)} of this "
                "network; give the table of this network, or score the choices anew"
            )
        return finite_of(self.table, known, (*context.notes, *self._doubts(context, len(known))))

    def _doubts(self, context: ScoringContext, known: int) -> list[str]:
        """Return notes on missing losses, and on losses of another network or of other rules."""
        count, notes = len(context.candidates), []
        if known < count:
            notes.append(f"{count - known} of {count} choices were left out, as the importance table lacks them")
        if self.table.network and self.table.network != context.network:
            notes.append(
                "the importance table was scored on a network with other weights; score the choices anew to be sure"
            )
        if self.table.algorithm != context.rules.get(self.method, ""):
            notes.append(
                "the importance table was scored by other rules (another version of depthcomp, or other refits); score "
                "the choices anew to be sure"
            )
        return notes
