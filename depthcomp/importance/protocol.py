"""Protocol of an importance: what every way to find the losses of choices must answer.

An importance is a file of this folder with a class that answers the protocol; the class is what users pass. Its file
may also register presets, which users give by name: `PRESETS.register("mine", MyImportance())`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from depthcomp.importance.context import ScoringContext
from depthcomp.importance.settings import Settings
from depthcomp.importance.table import Scored
from latency_tables.fleet.work import Shard

__all__ = ["Importance"]


@runtime_checkable
class Importance(Protocol):
    """A way to find what each choice costs in loss; lower is better."""

    @property
    def method(self) -> str:
        """The name of the way, as an importance.json holds it; presets with other settings share it."""

    @property
    def settings(self) -> Settings:
        """What decides the scores, as JSON scalars."""

    @property
    def most_images(self) -> int | None:
        """How many images of `data` are read at most; None for as many as their size asks for."""

    @property
    def memory_mib(self) -> int:
        """What fits may take in memory, in MiB, while choices are scored and where the chosen plans are refitted."""

    @property
    def unshareable(self) -> str:
        """Why a part of the choices cannot be scored apart from the others; empty where it can."""

    def rules(self, *, refit_kept: bool) -> str:
        """Return by which rules it scores; other rules give other scores for equal settings. Empty if not known."""

    def score_all(self, context: ScoringContext) -> Scored:
        """Return the losses of the choices.

        Raises:
            DataError: the network's own outputs on the images are not finite.
            TableError: a file cannot be read or written.
        """

    def score_part(self, context: ScoringContext, part: Shard) -> int:
        """Put the scores of a part of the choices into the journal, and return the number of the part's entries.

        Raises:
            DepthCompError: no part can be scored apart.
            DataError, TableError: as for `score_all`.
        """
