"""Atomic writes: a file is whole or absent, whatever happens meanwhile."""

import glob
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from depthcomp_errors import ArtifactError, DepthCompError

__all__ = ["write_atomically", "write_json"]

STALE_SECONDS = 3600  # no write takes that long, so the writer of an older draft is dead


def write_atomically(
    path: str | os.PathLike[str], data: bytes, *, what: str = "", error: type[DepthCompError] = ArtifactError
) -> Path:
    """Write `data` to `path`, all of it or nothing, and return the path; a reader never sees half a file.

    A link stays a link, and its target is written. Drafts that killed writers of this file left behind are removed
    after an hour.

    Args:
        path: the file.
        data: its whole content.
        what: what the file is, for the message.
        error: the error to raise.

    Raises:
        DepthCompError: the folder does not exist, or the file cannot be written; of kind `error`.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        _remove_stale_drafts(target)
        try:
            _write_through(draft, data)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as cause:
        file = f"the {what} {path}" if what else str(path)
        raise error(
            f"cannot write {file}: {cause.strerror}; choose a folder that exists, is writable and has room."
        ) from cause
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


def _remove_stale_drafts(target: Path) -> None:
    for draft in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if draft.stat().st_mtime < time.time() - STALE_SECONDS:
                draft.unlink()
