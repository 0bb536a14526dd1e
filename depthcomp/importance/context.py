"""Context of a scoring: the network, the choices to score, and everything else that an importance may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from depthcomp.data.calibration import calibration_hash
from depthcomp.fingerprint import fingerprint, network_hash
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance.journal import ScoreJournal
from depthcomp.latency.pricing import Candidate
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from fx_passes import SpanChoice

__all__ = ["JOURNAL", "ScoringContext"]

JOURNAL = "importance.jsonl"


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """What an importance needs to score the choices of one network.

    Attributes:
        prepared: the network and its images.
        candidates: the choices to score; memory has room for the fit of each.
        savings_ms: what each choice saves, in ms.
        memory: what fits may take.
        rules: by which rules each method of scoring scores here, by the method's name.
        notes: what the user should know of choices that were left out.
        refit_kept: whether kept convolutions that read a change are refitted for its score, as they will be where the
            plan is carried out.
        folder: where finished scores are kept in importance.jsonl; None to keep none.
        seed: of everything random.
        progress: called as (what, done, total).
    """

    prepared: Prepared
    candidates: Sequence[Candidate]
    savings_ms: Mapping[SpanChoice, float]
    memory: FitMemory
    rules: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refit_kept: bool = True
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
        """Return the journal in the folder of the scores that depend on this network, these images and `parts`.

        Args:
            algorithm: number of the algorithm that scores; it rises when equal settings come to give other scores.
            parts: what else the scores depend on, such as the settings.

        Raises:
            TableError: the file cannot be read, or is no journal.
        """
        run = fingerprint(
            f"{algorithm} torch {torch.__version__} threads {torch.get_num_threads()}",
            network_hash(self.prepared.captured.gm), self.data, *parts,
        )  # fmt: skip
        return ScoreJournal(None if self.folder is None else self.folder / JOURNAL, run)
