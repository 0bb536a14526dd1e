"""Protocol of an importance, a way to find the losses of choices.

Each importance is a class in its own file of this folder; users pass an instance. A class that inherits from
`Importance` gets the defaults of its properties. Its file may also register presets, which users give by name:
`PRESETS.register("mine", MyImportance())`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, runtime_checkable

from depthcomp.errors import DepthCompError
from depthcomp.fitting.memory import MEMORY_MIB
from depthcomp.fitting.speed import Speed
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.scored import Scored
from depthcomp.importance.settings import Settings
from latency_tables.fleet.work import Shard

__all__ = ["Importance"]


@runtime_checkable
class Importance(Protocol):
    """A way to find the loss of each choice; lower is better."""

    @property
    @abstractmethod
    def method(self) -> str:
        """Name of the importance, as in importance.json; presets with other settings share it."""

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Settings that decide the scores, as JSON scalars."""

    @property
    def most_images(self) -> int | None:
        """Most images of `data` to read; None to choose by their size."""
        return None

    @property
    def memory_mib(self) -> int:
        """Memory that fits may use, in MiB, both for scores and for the refits of chosen plans."""
        return MEMORY_MIB

    @property
    def unshareable(self) -> str:
        """Reason why shards cannot score parts of the choices; empty where they can."""
        return ""

    def rules(self, *, refit_kept: bool) -> str:
        """Return a version of the scoring rules, or "" if unknown; other rules give other scores for equal settings."""
        return ""

    def foretell(self, context: ScoringContext, speed: Speed) -> float | None:
        """Return about how many seconds `score_all` will take on a machine of this speed; None where unknown."""
        return None

    @abstractmethod
    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices.

        Raises:
            DataError: the network's own outputs on the images are not finite.
            TableError: a file cannot be read or written.
        """

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Add the scores of a part of the choices to the journal, and return the number of the part's entries.

        Raises:
            DepthCompError: shards cannot score parts.
            DataError, TableError: as for `score_all`.
        """
        reason = self.unshareable or "cannot score a part of the choices; score all choices in one process"
        raise DepthCompError(f"importance {self.method} {reason}")
