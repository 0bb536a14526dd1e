"""Checks, before the work begins, that a file or folder can be written to."""

import os
from pathlib import Path

from depthcomp_errors import ArtifactError, DepthCompError

__all__ = ["require_writable_file", "require_writable_folder"]


def require_writable_file(
    path: Path, what: str, elsewhere: str, *, error: type[DepthCompError] = ArtifactError
) -> None:
    """Refuse a path that no file can be written to; nothing is written.

    Args:
        path: the path.
        what: what would be written there, for the message.
        elsewhere: what to do where the folder is read-only, for the message.
        error: the error to raise.

    Raises:
        DepthCompError: the path is a folder, or its own folder does not exist or cannot be written to; of kind `error`.
    """
    if path.is_dir():
        raise error(f"cannot write the {what} {path}: it is a folder; add a file name to it.")
    if not path.parent.is_dir():
        raise error(f"cannot write the {what} {path}: its folder does not exist; create that first.")
    if not _writable(path.parent):
        raise error(f"cannot write the {what} {path}: its folder cannot be written to; {elsewhere}.")


def require_writable_folder(directory: str | os.PathLike[str], *, error: type[DepthCompError] = ArtifactError) -> Path:
    """Return the folder, created with its parents if need be.

    Raises:
        DepthCompError: it cannot be created, is a file, or cannot be written to; of kind `error`.
    """
    try:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as cause:  # ValueError: a null byte
        reason = getattr(cause, "strerror", None) or cause
        raise error(
            f"cannot create the folder {directory!s:.200}: {reason}; choose a path that is not a file, in a folder"
            " that is writable."
        ) from cause
    if not _writable(folder):
        raise error(f"the folder {folder} cannot be written to; choose another or change its mode.")
    return folder


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
