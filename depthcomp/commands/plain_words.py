"""What every command of the command line says when something goes wrong, and how it exits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from depthcomp.errors import DepthCompError

__all__ = ["EXIT_INTERRUPTED", "EXIT_MENDABLE", "plain_words"]

EXIT_MENDABLE = 2  # also what a wrong option exits with
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def plain_words() -> Iterator[None]:
    """Say warnings and the errors of depthcomp in a line each on stderr; exit after an error or Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations and the like speak to developers
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            yield
        except DepthCompError as error:
            typer.echo(f"error: {_line(error)}", err=True)
            raise typer.Exit(EXIT_MENDABLE) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {_line(message)}", err=True)


def _line(message: object) -> str:
    return " ".join(str(message).split())
