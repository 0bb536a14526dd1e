"""The file format of latency tables: canonical JSON behind a strict schema.

The schema is published as `latency_tables/data/schema.json`, for readers that are not Python; after a change of
the format, `depthcomp tables schema` prints what belongs there.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from depthcomp_errors import TableError
from depthcomp_files import JsonFormat, require_writable_file
from latency_tables.tables.calibration import Calibration
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment

__all__ = [
    "TableFile",
    "published_schema",
    "read_table_file",
    "require_writable_table",
    "write_table_file",
]

SCHEMA_VERSION = 2


class TableFile(BaseModel):
    """Latencies of operators, measured in one environment."""

    model_config = ConfigDict(extra="forbid", strict=True, title="depthcomp latency table")

    schema_version: Literal[2]
    environment: Environment
    method: Method
    entries: dict[str, Entry] = Field(description="entry by operator key")
    failures: dict[str, str] = Field(default={}, description="why an operator could not be measured, by its key")
    calibration: Calibration | None = Field(default=None, description="from sums of entries to whole networks")


_FORMAT = JsonFormat(
    "latency table", TableFile, "schema_version", SCHEMA_VERSION, "measure anew", TableError, has_kind=False
)


def read_table_file(path: Path) -> TableFile:
    """Return the checked content of a file.

    Raises:
        TableError: the file cannot be read, is truncated, or holds something else than a table.
    """
    return _FORMAT.read(path)


def write_table_file(path: Path, content: dict[str, Any]) -> None:
    """Write the content of a table, all of it or nothing: a reader never sees half a table.

    Raises:
        TableError: the path cannot be written, or a number is not finite.
    """
    _FORMAT.write(path, content)


def published_schema() -> str:
    """Return the JSON schema of the format as text."""
    schema = TableFile.model_json_schema()
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**dialect, **schema}, indent=1, sort_keys=True) + "\n"


_ELSEWHERE = "choose another, or load the table with LatencyTable.load and pass that"


def require_writable_table(path: Path) -> None:
    """Refuse a path that a table could not be written to; nothing is written.

    Raises:
        TableError: the path is a folder, or its own folder does not exist or cannot be written to.
    """
    require_writable_file(path, "latency table", _ELSEWHERE, error=TableError)
