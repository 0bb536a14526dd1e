"""A compression that was saved before its fine-tuning: what a run that was killed then goes on from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from depthcomp.budget import Budget
from depthcomp.errors import DepthCompError
from depthcomp.files import require_writable, write_atomically
from depthcomp.importance.config import ImportanceConfig
from depthcomp.importance.fingerprint import calibration_hash, fingerprint, network_hash
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import Prepared
from depthcomp.results.loading import load_result
from depthcomp.results.result import CompressionResult
from depthcomp.tuned_result import CHECKPOINTS, UNFINISHED
from latency_tables import Environment

__all__ = ["SavedCompression", "settings_hash"]


def settings_hash(
    prepared: Prepared,
    budget: Budget,
    method: str,
    importance: ImportanceConfig | ImportanceTable,
    seed: int,
    environment: Environment,
) -> str:
    """Return what is equal where a compression may stand for another, though measurements never repeat exactly."""
    return fingerprint(
        network_hash(prepared.captured), calibration_hash(prepared.calibration), str(tuple(prepared.example.shape)),
        repr(budget), method, repr(importance), str(seed), environment.fingerprint(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedCompression:
    """A folder of results, with a mark in it while their fine-tuning has not ended.

    Attributes:
        folder: the folder.
        settings: the hash of what is asked for.
    """

    folder: Path
    settings: str

    @property
    def _mark(self) -> Path:
        return self.folder / CHECKPOINTS / UNFINISHED

    def save(self, result: CompressionResult, *, to_be_tuned: bool) -> CompressionResult:
        """Write a result, and the mark if it is to be fine-tuned; return it with its trainable form as it is stored.

        Fine-tuning begins with the stored one, so that a later run begins with the same: optimisers number parameters
        by their order.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        self._mark.unlink(missing_ok=True)  # what is written over must not pass for what another run has left
        result.save(self.folder)
        if not to_be_tuned:
            return result
        require_writable(self._mark.parent)
        write_atomically(self._mark, self.settings.encode())
        return replace(result, trainable=load_result(self.folder).trainable)

    def unfinished(self, prepared: Prepared) -> CompressionResult | None:
        """Return the result of the same settings whose fine-tuning has not ended, if there is one.

        Warns:
            UserWarning: there is one; or it cannot be read.
        """
        if not self._mark.is_file() or self._mark.read_bytes() != self.settings.encode():
            return None
        try:
            found = load_result(self.folder)
        except DepthCompError as error:
            warnings.warn(f"an unfinished run cannot go on, and all is compressed anew: {error}", stacklevel=3)
            return None
        warnings.warn(
            f"{self.folder} holds this compression, not yet fine-tuned to the end; the run goes on from there",
            stacklevel=3,
        )
        return replace(found, original=prepared.original, example_inputs=(prepared.example,))
