"""Files that are whole or absent, and folders that can be written to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthcomp.errors import ArtifactError

__all__ = ["require_writable", "write_atomically", "write_json"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`, all of it or nothing, and return the path; a reader never sees half a file.

    Where `path` is a link, it stays one, and what it leads to is written.

    Raises:
        ArtifactError: the folder does not exist, or the file cannot be written.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        try:
            _write_through(draft, data)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists, is writable and has room"
        ) from error
    return path


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write JSON values to `path` as `write_atomically` does, and return the path.

    Raises:
        ArtifactError: the folder does not exist, or the file cannot be written.
        ValueError: a number is not finite.
    """
    return write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def require_writable(directory: str | os.PathLike[str]) -> Path:
    """Return the folder, created with its parents if need be.

    Raises:
        ArtifactError: it cannot be created, is a file, or cannot be written to.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot create the folder {folder}: {error.strerror}; choose one that is writable and no file"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"the folder {folder} cannot be written to; choose another or change its mode")
    return folder
