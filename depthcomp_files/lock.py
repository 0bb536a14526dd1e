"""Locks of files: one process at a time changes a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from depthcomp_errors import ArtifactError, DepthCompError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, what: str, *, error: type[DepthCompError] = ArtifactError) -> Iterator[None]:
    """Hold the lock of a file while a block runs.

    The lock is a file beside it with `.lock` added to its name, which stays there afterwards. The system frees the lock
    of a process that dies. Links to one file share the lock of that file.

    Args:
        path: the file; it need not exist.
        what: what the file is, for the message.
        error: the error to raise.

    Raises:
        DepthCompError: the folder does not exist, cannot be written to, or is of a file system without locks; of
            kind `error`.
    """
    if not path.parent.is_dir():
        raise error(f"cannot write the {what} {path}: its folder does not exist; create it first.")
    lock = FileLock(f"{os.path.realpath(path)}.lock")
    try:
        lock.acquire()
    except OSError as cause:
        raise error(
            f"cannot write the {what} {path}: {cause.strerror}; choose a folder that is writable and has room."
        ) from cause
    except NotImplementedError as cause:  # filelock's word for a file system without locks
        raise error(
            f"cannot lock the {what} {path}: its file system has no locks; choose a folder on another file system."
        ) from cause
    try:
        yield
    finally:
        lock.release()
