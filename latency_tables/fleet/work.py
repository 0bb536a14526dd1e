"""Work files: lists of operators, planned on one machine and measured on others."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from depthcomp_errors import TableError
from depthcomp_files import JsonFormat
from latency_tables.operators.signature import OperatorSignature

__all__ = ["Origin", "Shard", "Work"]

WORK_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where an operator is needed.

    Attributes:
        model: the model's name.
        batch: images per inference.
        places: the layers that are this operator, and the rewrites that it would be the result of.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    model: str
    batch: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a work.

    Attributes:
        index: which; 0 is the first, as Slurm and Kubernetes count.
        count: of how many.

    Raises:
        TableError: there is no such shard.

    Example:
        >>> Shard.parse("1/4")
        Shard(index=1, count=4)
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            last = f"0/{self.count} to {self.count - 1}/{self.count}" if self.count > 0 else "0/1"
            raise TableError(f"shard {self.index}/{self.count} does not exist; they count from zero: {last}.")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that is written as INDEX/COUNT.

        Raises:
            TableError: the text is no shard.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if found is None:
            raise TableError(f"shard {text!r} must be INDEX/COUNT, such as 0/4 for the first of four.")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class Work:
    """The operators that one or several models need, each once.

    Attributes:
        operators: where each operator is needed, by its key.

    Example:
        >>> work = Work.load("work.json")                     # doctest: +SKIP
        >>> measure(work.signatures(Shard(0, 4)), backend)    # doctest: +SKIP
    """

    operators: Mapping[str, tuple[Origin, ...]]

    def __len__(self) -> int:
        return len(self.operators)

    def signatures(self, shard: Shard = Shard(0, 1)) -> list[OperatorSignature]:
        """Return the operators of one shard, in order.

        Every operator is in exactly one shard, which depends on nothing but the operators. Neighbours, which cost
        about the same, go to different shards.
        """
        return sorted(map(OperatorSignature.parse, self.operators))[shard.index :: shard.count]

    def merged(self, other: "Work") -> "Work":
        """Return the operators of both, with all their origins."""
        keys = sorted({*self.operators, *other.operators})
        return Work({key: _all_origins(self.operators.get(key, ()), other.operators.get(key, ())) for key in keys})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Work":
        """Return the work in a file.

        Raises:
            TableError: the file cannot be read, is truncated, or holds something else.
        """
        content = _FORMAT.read(Path(path))
        for key in content.operators:
            OperatorSignature.parse(key)
        return cls(content.operators)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the work to a file, all of it or nothing; equal works become equal bytes.

        Raises:
            TableError: the path cannot be written, or holds something else.
        """
        _FORMAT.write(Path(path), self.content())

    def content(self) -> dict[str, object]:
        """Return the content of the file as JSON values."""
        return {
            "operators": {key: [asdict(origin) for origin in sorted(self.operators[key])] for key in self.operators}
        }


class _WorkFile(BaseModel):
    """The file format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["work file"]
    work_version: Literal[1]
    operators: dict[str, tuple[Origin, ...]] = Field(description="where each operator is needed, by its key")


_FORMAT = JsonFormat(
    "work file", _WorkFile, "work_version", WORK_VERSION, "plan anew with `depthcomp tables plan`", TableError
)


def _all_origins(first: tuple[Origin, ...], second: tuple[Origin, ...]) -> tuple[Origin, ...]:
    places: dict[tuple[str, int], set[str]] = {}
    for origin in (*first, *second):
        places.setdefault((origin.model, origin.batch), set()).update(origin.places)
    return tuple(Origin(model, batch, tuple(sorted(names))) for (model, batch), names in sorted(places.items()))
