"""Context of a scoring: the network, the choices to score, and all other inputs of an importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from depthcomp.data.calibration import calibration_hash
from depthcomp.fingerprint import fingerprint, network_hash
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.contenders import OnFrontier
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from fx_passes import SpanChoice
from fx_passes.exclusion import excluded_nodes

__all__ = ["JOURNAL", "ScoringContext"]

JOURNAL = "importance.jsonl"


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """Inputs of an importance that scores the choices of one network.

    Attributes:
        prepared: the network and its images.
        candidates: the choices to score; memory has room for the fit of each.
        savings_ms: latency that each choice saves, in ms.
        memory: the memory that fits may use.
        channels: decides which inner channels stay.
        rules: the current scoring rules, by name of the method.
        notes: notes for the user on choices that were left out.
        refit_kept: whether the score of a change includes a refit of the kept layers that read it. The refit of a
            plan should agree.
        on_frontier: returns the choices on the frontier, given losses; None where the method has no solver. An
            importance may leave out choices that cannot enter the frontier.
        folder: folder for importance.jsonl, the journal of finished scores; None to keep no journal.
        seed: seed of everything random.
        progress: called as (what, done, total).
    """

    prepared: Prepared
    candidates: Sequence[Candidate]
    savings_ms: Mapping[SpanChoice, float]
    memory: FitMemory
    channels: ChannelOrders
    rules: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refit_kept: bool = True
    on_frontier: OnFrontier | None = None
    folder: Path | None = None
    seed: int = 0
    progress: Progress = silent

    @property
    def network(self) -> str:
        """The hash of the network whose choices are scored."""
        return network_hash(self.prepared.network.gm)

    @property
    def data(self) -> str:
        """The hash of the images."""
        return calibration_hash(self.prepared.calibration)

    def journal(self, algorithm: int, *parts: str) -> ScoreJournal:
        """Return the journal of scores that depend on this network, these images and `parts`.

        Args:
            algorithm: version of the scoring algorithm; each change that gives other scores raises it.
            parts: everything else that decides the scores, for example the settings.

        Raises:
            TableError: the file cannot be read, or is no journal.
        """
        run = fingerprint(
            f"{algorithm} torch {torch.__version__} threads {torch.get_num_threads()}",
            network_hash(self.prepared.captured.gm), self.data, *parts,
            *map(str, excluded_nodes(self.prepared.captured.gm).items()),
        )  # fmt: skip
        return ScoreJournal(None if self.folder is None else self.folder / JOURNAL, run)
