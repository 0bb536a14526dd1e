"""Whether a file could be written, asked before the minutes of work that it is for."""

import os
from pathlib import Path

from depthcomp_errors import DepthCompError, TableError

__all__ = ["require_writable_file"]


def require_writable_file(path: Path, what: str, elsewhere: str, error: type[DepthCompError] = TableError) -> None:
    """Refuse a path that a file could not be written to; nothing is written.

    Args:
        path: the path.
        what: what would be written there, for the message.
        elsewhere: what to do where the folder is read-only, for the message.
        error: what is raised.

    Raises:
        DepthCompError: the path is a folder, or its own folder does not exist or cannot be written to; of kind `error`.
    """
    if path.is_dir():
        raise error(f"cannot write the {what} {path}: it is a folder; add a file name to it.")
    if not path.parent.is_dir():
        raise error(f"cannot write the {what} {path}: its folder does not exist; create that first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise error(f"cannot write the {what} {path}: its folder cannot be written to; {elsewhere}.")
