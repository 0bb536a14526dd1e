"""Error reporting of the command line: one line for each error and warning, and the exit codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from depthcomp.errors import DepthCompError, TrainingError

__all__ = ["EXIT_INTERRUPTED", "EXIT_MENDABLE", "reported_errors"]

EXIT_MENDABLE = 2  # the exit code for wrong options, too
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def reported_errors(kept: Path | None = None) -> Iterator[None]:
    """Print each warning and each error of depthcomp as one line on stderr; exit after an error or Ctrl-C.

    Args:
        kept: a folder from which the command resumes after Ctrl-C, or after fine-tuning has failed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations are for developers
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            yield
        except DepthCompError as error:
            typer.echo(f"error: {_line(error)}{_what_stays(error, kept)}", err=True)
            raise typer.Exit(EXIT_MENDABLE) from error
        except KeyboardInterrupt as interrupt:
            goes_on = f"; the same command resumes from {kept}" if kept is not None else ""
            typer.echo(f"interrupted{goes_on}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def _what_stays(error: DepthCompError, kept: Path | None) -> str:
    """Return a sentence on the saved parts of a compression whose fine-tuning failed."""
    if not isinstance(error, TrainingError) or error.result is None:
        return ""
    if kept is None:
        return "; the compressed network is lost; give --out to keep it"
    return f"; the compressed network is in {kept}, and the same command resumes from there"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {_line(message)}", err=True)


def _line(message: object) -> str:
    return " ".join(str(message).split())
