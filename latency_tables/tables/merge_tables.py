"""The merge of latency tables from shards and repeated measurements into one; their order does not matter."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from depthcomp_errors import TableError
from latency_tables.tables.entry import Entry
from latency_tables.tables.environment import require_same_environment
from latency_tables.tables.table import LatencyTable

__all__ = ["MergedTables", "better_entry", "merge_tables"]


@dataclass(frozen=True, slots=True)
class MergedTables:
    """Several tables merged into one.

    Attributes:
        table: all their entries.
        disagreements: for each key that several tables have, how far their latencies are apart, relative to the
            entry that was kept.
        calibrations: how many different lines to whole networks the tables have; of more than one none is kept.
    """

    table: LatencyTable
    disagreements: Mapping[str, float]
    calibrations: int


def merge_tables(tables: Mapping[str, LatencyTable]) -> MergedTables:
    """Return one table from several of the same environment; their order does not matter.

    Of an operator that several tables have, `better_entry` decides which entry is kept. A failure is kept only where
    no table has an entry. The method is that of the table with the most entries. The calibration is kept where all
    tables that have one have the same: which of several belongs to the entries that were kept, nothing tells.

    Args:
        tables: the tables, by the names that a message may call them by.

    Raises:
        TableMismatchError: two tables come from different environments.
        TableError: there is no table.

    Warns:
        UserWarning: a field differs that explains small differences only.
    """
    if not tables:
        raise TableError("there is no table to merge; give at least one.")
    _require_one_environment(tables)
    several = list(tables.values())
    entries: dict[str, Entry] = {}
    for table in several:
        for key, entry in table.entries.items():
            entries[key] = better_entry(entries[key], entry) if key in entries else entry
    failures = {key: why for key, why in _all_failures(several) if key not in entries}
    largest = max(several, key=lambda table: (len(table), str(asdict(table.method)), str(asdict(table.environment))))
    calibrations = {table.calibration for table in several if table.calibration is not None}
    calibration = next(iter(calibrations)) if len(calibrations) == 1 else None
    merged = LatencyTable(largest.environment, largest.method, entries, failures, calibration)
    return MergedTables(merged, _disagreements(several, entries), len(calibrations))


def better_entry(first: Entry, second: Entry) -> Entry:
    """Return the entry to trust more of two for the same operator.

    A stable entry is better than one flagged unstable; then the faster one, as noise only adds time; then the one
    with the smaller spread, then the one from more samples.
    """
    return min(first, second, key=lambda entry: (entry.unstable, entry.ms, entry.spread, -entry.n))


def _require_one_environment(tables: Mapping[str, LatencyTable]) -> None:
    (first_name, first), *others = tables.items()
    for name, table in others:
        require_same_environment(
            table.environment,
            first.environment,
            what=f"the latency table {name}",
            place=f"in {first_name}",
            remedy="merge tables of one environment only",
        )


def _all_failures(tables: Sequence[LatencyTable]) -> list[tuple[str, str]]:
    return sorted(failure for table in tables for failure in table.failures.items())


def _disagreements(tables: Sequence[LatencyTable], kept: Mapping[str, Entry]) -> dict[str, float]:
    found = {}
    for key, entry in kept.items():
        all_ms = [table.entries[key].ms for table in tables if key in table.entries]
        if len(all_ms) > 1 and entry.ms > 0:
            found[key] = (max(all_ms) - min(all_ms)) / entry.ms
    return found
