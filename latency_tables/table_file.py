"""The file format of latency tables: canonical JSON behind a strict schema."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from depthcomp_errors import TableError
from latency_tables.entry import Entry, Method
from latency_tables.environment import Environment

__all__ = ["TableFile", "first_fault", "read_table_file", "require_writable_table", "write_table_file"]

SCHEMA_VERSION = 1


class TableFile(BaseModel):
    """The file format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1]
    environment: Environment
    method: Method
    entries: dict[str, Entry]


def read_table_file(path: Path) -> TableFile:
    """Return the checked content of a file.

    Raises:
        TableError: the file cannot be read, is truncated, or holds something else than a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise TableError(f"cannot read the latency table {path}: {error.strerror}; check the path.") from error
    except ValueError as error:
        raise TableError(f"{path} is truncated or not JSON ({error}); restore it or measure anew.") from error
    _check_version(raw, path)
    try:
        return TableFile.model_validate_json(text)
    except ValidationError as error:
        raise TableError(f"{path} is not a latency table: {first_fault(error)}; measure anew.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_version(raw: Any, path: Path) -> None:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise TableError(
            f"{path} has schema version {version!r}, but this depthcomp reads version {SCHEMA_VERSION};"
            " measure anew, or use the depthcomp that wrote it."
        )


def first_fault(error: ValidationError) -> str:
    """Return the first fault that pydantic found, on one line."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def write_table_file(path: Path, content: dict[str, Any]) -> None:
    """Write the content of a table, all of it or nothing: a reader never sees half a table.

    Raises:
        TableError: the path cannot be written, or a number is not finite.
    """
    try:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise TableError(f"the table holds a number that is not finite ({error}); measure anew.") from error
    _write_whole(path, f"{text}\n")


def require_writable_table(path: Path) -> None:
    """Refuse a path that a table could not be written to; nothing is written.

    Raises:
        TableError: the path is a folder, or its own folder does not exist or cannot be written to.
    """
    if path.is_dir():
        raise TableError(f"cannot write the latency table {path}: it is a folder; add a file name to it.")
    if not path.parent.is_dir():
        raise TableError(f"cannot write the latency table {path}: its folder does not exist; create that first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise TableError(
            f"cannot write the latency table {path}: its folder cannot be written to; choose another,"
            " or load the table with LatencyTable.load and pass that."
        )


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise TableError(
            f"cannot write the latency table {path}: {error.strerror}; choose a folder that exists and is writable."
        ) from error
