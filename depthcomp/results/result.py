"""Result of a compression: its findings, with methods to export and save them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthcomp.export import engine, onnx_model
from depthcomp.progress import Progress
from depthcomp.results.findings import Findings
from depthcomp.results.saving import save_result

__all__ = ["CompressionResult"]


@dataclass(frozen=True, repr=False)
class CompressionResult(Findings):
    """A compressed network and the numbers behind it; the attributes are those of `Findings`."""

    def __repr__(self) -> str:
        return (
            f"CompressionResult({self.original_ms:.3f} ms -> {self.measured_ms:.3f} ms measured, predicted "
            f"{self.predicted_ms:.3f} ms, budget {self.budget_ms:.3f} ms ({self.budget}); depth {self.original_depth} "
            f"-> {self.depth}, loss {self.loss:.3g})"
        )

    def export_onnx(self, path: str | os.PathLike[str]) -> Path:
        """Write `model` as ONNX, checked by onnx.checker and against onnxruntime; return the path.

        Raises:
            ArtifactError: the path cannot be written, or the exported network computes other values.
        """
        return onnx_model.export_onnx(self.model, self.example_inputs, path)

    def export_engine(
        self,
        path: str | os.PathLike[str],
        *,
        to: str = "tensorrt-rtx",
        precision: str = "fp32",
        targets: Iterable[int] = (),
        batch: int | Sequence[int] | None = None,
        data: Iterable[Any] | None = None,
        tf32: bool = True,
        timing_cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Build a TensorRT engine of `model`, write it with a JSON file that describes it, and return its path.

        Arguments and errors are those of `depthcomp.export.engine.export_engine`.

        Example:
            >>> result.export_engine("model.engine", precision="fp16", targets=(86, 89))  # doctest: +SKIP
        """
        return engine.export_engine(
            self.model, self.example_inputs, path,
            to=to, precision=precision, targets=targets, batch=batch, data=data, tf32=tf32, timing_cache=timing_cache,
            progress=progress,
        )  # fmt: skip

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the result to a folder, which `depthcomp.load` reads, and return the folder.

        The files are plan.json, model.json and model.safetensors (the network), model.onnx, result.json (the numbers),
        latency_table.json, importance.json, report.html and frontier.svg. Each file is written whole or not at all.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        return save_result(self, directory)
