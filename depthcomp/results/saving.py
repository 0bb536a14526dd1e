"""Saving of a result to a folder, from which later commands continue."""

from __future__ import annotations

import os
from pathlib import Path

from depthcomp.errors import ArtifactError, TableError
from depthcomp.export.onnx_model import export_onnx
from depthcomp.results.findings import Findings
from depthcomp.results.stored_network import save_network
from depthcomp.results.stored_numbers import result_json
from depthcomp_files import write_atomically, write_json

__all__ = ["save_result"]

TRAINABLE, ORIGINAL = "trainable", "original"  # folders with one network each
NUMBERS, PLAN, TABLE, IMPORTANCE = "result.json", "plan.json", "latency_table.json", "importance.json"


def save_result(result: Findings, directory: str | os.PathLike[str]) -> Path:
    """Write a result to a folder, created if missing, and return the folder.

    The files are plan.json, model.json and model.safetensors, model.onnx, latency_table.json, importance.json,
    result.json, report.html and frontier.svg. Folders below hold the original and the trainable form, for `depthcomp
    finetune`. Each file and each network is written whole or not at all. The trainable form comes last: a fine-tuning
    killed while it saves then starts again from the old form, and its finished checkpoint restores the rest.

    Raises:
        ArtifactError: the folder cannot be written, or the network cannot be stored or exported.
    """
    from depthcomp.results.report import write_report  # draws plots: loaded only when a report is wanted

    folder = save_network(result.model, directory, result.example_inputs)
    write_atomically(folder / PLAN, result.plan.to_json().encode())
    if result.original is not None:
        save_network(result.original, folder / ORIGINAL)
    export_onnx(result.model, result.example_inputs, folder / "model.onnx")
    try:
        result.table.save(folder / TABLE)
    except TableError as error:
        raise ArtifactError(f"the latency table cannot be saved: {error}") from error
    try:
        result.importance.save(folder / IMPORTANCE)
    except TableError as error:
        raise ArtifactError(f"the importance table cannot be saved: {error}") from error
    write_json(folder / NUMBERS, result_json(result))
    write_report(result, folder)
    save_network(result.trainable, folder / TRAINABLE)
    return folder
