"""Latency tables: operator signature in, milliseconds out, for one environment."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from depthcomp_errors import TableError
from latency_tables.operators.signature import OperatorSignature
from latency_tables.tables.calibration import Calibration
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment, require_same_environment
from latency_tables.tables.table_file import read_table_file, write_table_file

__all__ = ["UNCHECKED", "LatencyTable"]

UNCHECKED = "measure anew here, or pass check_environment=False to use it all the same"
"""What to do about a table of another environment, where that argument is taken."""


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Latencies of operators in one environment; a table serves every network that shares shapes.

    Attributes:
        environment: where the entries were measured.
        method: how.
        entries: entry by `OperatorSignature.key`.
        failures: why an operator could not be measured, by its key; none of them has an entry.
        calibration: the line from sums of entries to whole networks, as the last compression that used the table
            fitted it; None where none was. It was learnt on variants of one network: for another it is information
            at most, and nothing predicts by it.

    Example:
        >>> table = LatencyTable.load("desktop.json")  # doctest: +SKIP
        >>> table.ms(signature)                        # doctest: +SKIP
        0.184
    """

    environment: Environment
    method: Method
    entries: Mapping[str, Entry]
    failures: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    def ms(self, signature: OperatorSignature) -> float:
        """Return the latency of an operator in ms.

        Raises:
            TableError: the table has no entry for it.
        """
        entry = self.entries.get(signature.key)
        if entry is None:
            why = f" ({self.failures[signature.key]})" if signature.key in self.failures else ""
            raise TableError(
                f"the latency table for {self.environment.backend} on {self.environment.device} has no entry"
                f" {signature.key!r}{why}; add it with `measure([signature], backend, table=table)`."
            )
        return entry.ms

    def __contains__(self, signature: OperatorSignature) -> bool:
        return signature.key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def check(
        self, environment: Environment, *, remedy: str = "give another path, and a table is measured here"
    ) -> None:
        """Refuse to serve another environment.

        Args:
            environment: where the table is to be used.
            remedy: what the user can do, for the message.

        Raises:
            TableMismatchError: a field that decides about latencies differs.

        Warns:
            UserWarning: a field differs that explains small differences only.
        """
        require_same_environment(
            self.environment,
            environment,
            what="the latency table",
            remedy=remedy,
        )

    def merged(self, other: "LatencyTable", *, check_environment: bool = True) -> "LatencyTable":
        """Return a table with the entries of both; where both have one, and for the method, `other` wins.

        A failure counts only where neither has an entry. The calibration is that of `other`, too, unless it has none:
        the fresher line was fitted to the fresher entries.

        Raises:
            TableMismatchError: the tables come from different environments.
        """
        if check_environment:
            self.check(other.environment, remedy=UNCHECKED)
        entries = {**self.entries, **other.entries}
        failures = {key: why for key, why in {**self.failures, **other.failures}.items() if key not in entries}
        return LatencyTable(self.environment, other.method, entries, failures, other.calibration or self.calibration)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LatencyTable":
        """Return the table in a file.

        Raises:
            TableError: the file cannot be read, is truncated, or holds something else than a table.
        """
        content = read_table_file(Path(path))
        for key in (*content.entries, *content.failures):
            OperatorSignature.parse(key)
        return cls(content.environment, content.method, content.entries, content.failures, content.calibration)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a file, all of it or nothing: a reader never sees half a table.

        Raises:
            TableError: the path cannot be written, or a number of the table is not finite.
        """
        write_table_file(Path(path), asdict(self))
