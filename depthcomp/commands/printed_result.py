"""Printed result of a command: its numbers, and the files that it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from depthcomp.results.result import CompressionResult

__all__ = ["print_result", "stamps", "written_since"]


def stamps(folder: Path | None, file: Path | None) -> dict[Path, tuple[int, int]]:
    """Return inode and time of change of each file in a folder, and of one more file."""
    paths = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    paths += [file] if file is not None else []
    stats = {path: path.stat() for path in paths if path.is_file() and path.suffix != ".lock"}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def written_since(before: Mapping[Path, tuple[int, int]], folder: Path | None, file: Path | None) -> list[Path]:
    """Return the files of a folder, and one more file, that changed since `stamps` were taken."""
    return [path for path, stamp in stamps(folder, file).items() if stamp != before.get(path)]


def print_result(result: CompressionResult, files: Sequence[Path], as_json: bool) -> None:
    """Print a result and the written files, as JSON or as a table."""
    (_print_json if as_json else _print_summary)(result, files)


def _print_json(result: CompressionResult, files: Sequence[Path]) -> None:
    from depthcomp.results.stored_numbers import result_json

    content = {**result_json(result), "files": [str(path) for path in files]}
    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def _print_summary(result: CompressionResult, files: Sequence[Path]) -> None:
    from rich.console import Console

    from depthcomp.commands.console import summary

    Console().print(summary(result))
    for path in files:
        typer.echo(f"wrote {path}")
