"""Resumption of a run that was killed while it fine-tuned, from the compression saved before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from depthcomp.budget import Budget
from depthcomp.data.calibration import calibration_hash
from depthcomp.errors import DepthCompError
from depthcomp.fingerprint import fingerprint, network_hash
from depthcomp.importance.protocol import Importance
from depthcomp.methods.method import Method
from depthcomp.preparation import Prepared
from depthcomp.results.loading import load_result, load_trainable
from depthcomp.results.result import CompressionResult
from depthcomp.results.saving import TRAINABLE
from depthcomp.results.stored_network import save_network
from depthcomp.runs.tuned_result import CHECKPOINTS, UNFINISHED
from depthcomp.warning import warn_caller
from depthcomp_files import write_atomically
from fx_passes.exclusion import excluded_nodes
from fx_passes.kinds import kinds
from latency_tables import Environment

__all__ = ["SavedCompression", "settings_hash"]


def settings_hash(
    prepared: Prepared,
    budget: Budget,
    method: Method,
    importance: Importance,
    seed: int,
    environment: Environment,
) -> str:
    """Hash the settings that decide whether a run can resume from a saved compression.

    Latencies are left out: measurements never repeat exactly.
    """
    limits = replace(method.limits, kinds=tuple(each.name for each in kinds(method.limits.kinds)))
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in prepared.example.tensors)
    return fingerprint(
        network_hash(prepared.captured.gm), calibration_hash(prepared.calibration), shapes,
        repr(budget), method.name, repr(limits), repr(importance), str(seed), environment.fingerprint(),
        importance.rules(refit_kept=True), *map(str, excluded_nodes(prepared.captured.gm).items()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedCompression:
    """A compression saved in a folder of results.

    Until its fine-tuning has ended, the folder also holds a mark and the trainable form to start from.

    Attributes:
        folder: the folder.
        settings: the hash of the run's settings.
    """

    folder: Path
    settings: str

    @property
    def _mark(self) -> Path:
        return self.folder / CHECKPOINTS / UNFINISHED

    def save(self, result: CompressionResult, *, to_be_tuned: bool) -> CompressionResult:
        """Write a result, with a mark if it is to be fine-tuned, and return it with the stored trainable form.

        This run and a resumed one both start from the stored form, as optimisers number parameters by their order. A
        copy is stored, because the tuned form later replaces the result's own.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        self._mark.unlink(missing_ok=True)  # a half-written result must not pass for a resumable one
        result.save(self.folder)
        if not to_be_tuned:
            return result
        save_network(result.trainable, self._mark.parent / TRAINABLE)
        write_atomically(self._mark, self.settings.encode())
        return replace(result, trainable=load_trainable(self._mark.parent, result.example_inputs))

    def unfinished(self, prepared: Prepared) -> CompressionResult | None:
        """Return the saved result with these settings whose fine-tuning has not ended; None if there is none.

        It is returned as it was before fine-tuning, even where a run was killed after it saved the tuned network.

        Warns:
            UserWarning: the run resumes, or the saved result cannot be read.
        """
        if not self._mark.is_file() or self._mark.read_bytes() != self.settings.encode():
            return None
        try:
            found = load_result(self.folder)
            trainable = load_trainable(self._mark.parent, found.example_inputs)
        except DepthCompError as error:
            warn_caller(f"the unfinished run cannot resume, so the model is compressed anew: {error}")
            return None
        warn_caller(f"{self.folder} holds this compression with unfinished fine-tuning; the run resumes from there")
        return replace(
            found, trainable=trainable, original=prepared.original, example_inputs=prepared.example.tensors,
            finetuned=None, tuned_before=(),
        )  # fmt: skip
