"""JSON documents: files that are written whole or not at all, and read behind a strict schema."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from depthcomp_errors import DepthCompError
from depthcomp_files.faults import first_fault
from depthcomp_files.writing import write_atomically

__all__ = ["JsonFormat"]

Document = TypeVar("Document", bound=BaseModel)
_WITHOUT_KIND = {"latency table": {"schema_version", "entries"}}  # fields of documents that have no field `kind`


@dataclass(frozen=True, slots=True)
class JsonFormat(Generic[Document]):
    """One kind of JSON file.

    Attributes:
        what: the name of the kind of file, also the value of its field `kind`.
        schema: checks the content.
        version_field: the field that holds the version.
        version: the version that is written.
        remedy: how a user gets a sound file, for messages.
        error: the error to raise.
        has_kind: whether the file says what it is in its field `kind`.
        upgrades: functions that convert the content of earlier versions, by version; other versions are not read.
    """

    what: str
    schema: type[Document]
    version_field: str
    version: int
    remedy: str
    error: type[DepthCompError]
    has_kind: bool = True
    upgrades: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)

    def read(self, path: Path) -> Document:
        """Return the checked content of a file.

        Raises:
            DepthCompError: the file cannot be read, is truncated, or holds something else.
        """
        text, raw = self._parsed(path)
        self._check_kind(raw, path)
        self._check_version(raw, path)
        try:
            return self.schema.model_validate_json(self._current(text, raw))
        except (AttributeError, KeyError, TypeError) as error:
            raise self.error(f"{path} is no {self.what} of an earlier version; {self.remedy}.") from error
        except ValidationError as error:
            raise self.error(
                f"{path} is no {self.what}: {first_fault(error)}; check the path, or {self.remedy}."
            ) from error

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Write a document, all of it or nothing: a reader never sees half a file.

        Equal documents become equal bytes. A file that holds its kind replaces only files of this kind, so a mistyped
        path costs no measurements. A link stays a link, and its target is written.

        Raises:
            DepthCompError: the path cannot be written, or holds something else, or a number is not finite.
        """
        if self.has_kind and path.is_file():
            self._require_replaceable(path)
        kind = {"kind": self.what} if self.has_kind else {}
        document = {**kind, self.version_field: self.version, **content}
        try:
            text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise self.error(f"the {self.what} holds a number that is not finite ({error}); {self.remedy}.") from error
        write_atomically(path, f"{text}\n".encode(), what=self.what, error=self.error)

    def _parsed(self, path: Path) -> tuple[str, Any]:
        try:
            text = path.read_text(encoding="utf-8")
            return text, json.loads(text, parse_constant=_refuse_constant)
        except OSError as error:
            raise self.error(f"cannot read the {self.what} {path}: {error.strerror}; check the path.") from error
        except (ValueError, RecursionError) as error:
            raise self.error(f"{path} is truncated or not JSON ({error}); restore it or {self.remedy}.") from error

    def _require_replaceable(self, path: Path) -> None:
        """Refuse to overwrite another kind of file; a document of another version, or with a fault inside, may go."""
        raw = self._parsed(path)[1]
        self._check_kind(raw, path)
        if not isinstance(raw, dict) or "kind" not in raw:
            raise self.error(f"{path} is no {self.what}, so it is not overwritten; check the path.")

    def _check_kind(self, raw: Any, path: Path) -> None:
        found = raw.get("kind") if isinstance(raw, dict) else None
        if found is None and self.has_kind and isinstance(raw, dict):
            found = next((kind for kind, fields in _WITHOUT_KIND.items() if fields <= raw.keys()), None)
        if found is not None and found != self.what:
            wanted = _with_article(self.what)
            raise self.error(
                f"{path} holds {_with_article(found)}, and {wanted} is needed; check the path, or {self.remedy}."
            )

    def _current(self, text: str, raw: dict[str, Any]) -> str:
        """Return the text of a document in the current version."""
        if raw[self.version_field] == self.version:
            return text
        return json.dumps({**self.upgrades[raw[self.version_field]](raw), self.version_field: self.version})

    def _check_version(self, raw: Any, path: Path) -> None:
        if isinstance(raw, dict) and self.has_kind and "kind" not in raw:
            raise self.error(f"{path} is no {self.what}, as it has no field 'kind'; check the path, or {self.remedy}.")
        version = raw.get(self.version_field) if isinstance(raw, dict) else None
        known = sorted((*self.upgrades, self.version))
        if type(version) is not int or version not in known:
            raise self.error(
                f"{path} has {self.version_field.replace('_', ' ')} {version!r}, but this depthcomp reads version"
                f" {' and '.join(map(str, known))}; {self.remedy}, or use the depthcomp that wrote it."
            )


def _with_article(noun: object) -> str:
    text = str(noun)
    return f"an {text}" if text[:1] in "aeiou" else f"a {text}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
