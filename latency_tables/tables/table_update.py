"""Adding to a table's file while others may do the same."""

import glob
import os
import time
from contextlib import suppress
from pathlib import Path

from latency_tables.locking import locked
from latency_tables.tables.table import LatencyTable

__all__ = ["update_table"]

STALE_SECONDS = 3600  # no write takes that long, so the writer of an older draft is dead


def update_table(path: Path, fresh: LatencyTable) -> LatencyTable:
    """Add a table to the one in a file, under the file's lock, and return what the file holds then.

    What another process wrote since `fresh` was begun stays; where both have an entry or a calibration, `fresh` wins. A
    file that is not there is created.

    Raises:
        TableMismatchError: the file holds a table of another environment; it is not changed.
        TableError: the file cannot be read or written, or holds something else.
    """
    with locked(path, "latency table"):
        _remove_drafts(path)
        table = LatencyTable.load(path).merged(fresh) if path.exists() else fresh
        table.save(path)
    return table


def _remove_drafts(path: Path) -> None:
    """Remove what writers left behind that were killed while writing."""
    path = Path(os.path.realpath(path))
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if draft.stat().st_mtime < time.time() - STALE_SECONDS:
                draft.unlink()
