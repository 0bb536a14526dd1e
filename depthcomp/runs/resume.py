"""Resumption of a run that was killed while it fine-tuned: the compression is saved before the fine-tuning begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from depthcomp.budget import Budget
from depthcomp.data.calibration import calibration_hash
from depthcomp.errors import DepthCompError
from depthcomp.fingerprint import fingerprint, network_hash
from depthcomp.importance.protocol import Importance
from depthcomp.preparation import Prepared
from depthcomp.results.loading import load_result, load_trainable
from depthcomp.results.result import CompressionResult
from depthcomp.results.saving import TRAINABLE
from depthcomp.results.stored_network import save_network
from depthcomp.runs.tuned_result import CHECKPOINTS, UNFINISHED
from depthcomp.warning import warn_caller
from depthcomp_files import write_atomically
from latency_tables import Environment

__all__ = ["SavedCompression", "settings_hash"]


def settings_hash(
    prepared: Prepared,
    budget: Budget,
    method: str,
    importance: Importance,
    seed: int,
    environment: Environment,
) -> str:
    """Hash the settings that decide whether a run may go on from a saved compression.

    Latencies are left out: measurements never repeat exactly.
    """
    return fingerprint(
        network_hash(prepared.captured.gm), calibration_hash(prepared.calibration), str(tuple(prepared.example.shape)),
        repr(budget), method, repr(importance), str(seed), environment.fingerprint(), importance.rules(refit_kept=True),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedCompression:
    """A folder of results; it also holds a mark and the fine-tuning's start until the fine-tuning has ended.

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
        by their order. It is stored apart from the result's own, in whose place the tuned one is saved.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        self._mark.unlink(missing_ok=True)  # what is written over must not pass for what another run has left
        result.save(self.folder)
        if not to_be_tuned:
            return result
        save_network(result.trainable, self._mark.parent / TRAINABLE)
        write_atomically(self._mark, self.settings.encode())
        return replace(result, trainable=load_trainable(self._mark.parent, result.example_inputs))

    def unfinished(self, prepared: Prepared) -> CompressionResult | None:
        """Return the result of the same settings whose fine-tuning has not ended, as it was before that.

        The tuned network may stand in its place already, where a run was killed as it ended.

        Warns:
            UserWarning: there is one; or it cannot be read.
        """
        if not self._mark.is_file() or self._mark.read_bytes() != self.settings.encode():
            return None
        try:
            found = load_result(self.folder)
            trainable = load_trainable(self._mark.parent, found.example_inputs)
        except DepthCompError as error:
            warn_caller(f"an unfinished run cannot go on, and all is compressed anew: {error}")
            return None
        warn_caller(f"{self.folder} holds this compression, not yet fine-tuned to the end; the run goes on from there")
        return replace(
            found, trainable=trainable, original=prepared.original, example_inputs=(prepared.example,),
            finetuned=None, tuned_before=(),
        )  # fmt: skip
