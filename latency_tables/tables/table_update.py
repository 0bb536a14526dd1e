"""The update of a table's file, which several processes may make at the same time."""

from pathlib import Path

from depthcomp_errors import TableError
from depthcomp_files import locked
from latency_tables.tables.table import LatencyTable

__all__ = ["update_table"]


def update_table(path: Path, fresh: LatencyTable) -> LatencyTable:
    """Add a table to the one in a file, under the file's lock, and return what the file holds then.

    What another process wrote since `fresh` was begun stays; where both have an entry or a calibration, `fresh` wins. A
    file that is not there is created.

    Raises:
        TableMismatchError: the file holds a table of another environment; it is not changed.
        TableError: the file cannot be read or written, or holds something else.
    """
    with locked(path, "latency table", error=TableError):
        table = LatencyTable.load(path).merged(fresh) if path.exists() else fresh
        table.save(path)
    return table
