import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fake_backend import ENVIRONMENT, FakeBackend, conv
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import TableError, TableMismatchError
from latency_tables import Calibration, Entry, LatencyTable, Method, measure
from latency_tables.tables.merge_tables import better_entry, merge_tables
from latency_tables.tables.table_update import update_table

METHOD = Method(
    estimator="by hand", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.0
)
entries = st.builds(
    Entry,
    ms=st.sampled_from([0.5, 1.0, 2.0]),
    spread=st.sampled_from([0.0, 0.01, 0.3]),
    n=st.sampled_from([9, 27]),
    unstable=st.booleans(),
)
tables = st.dictionaries(st.sampled_from([conv(3, n).key for n in range(1, 5)]), entries).map(
    lambda found: LatencyTable(ENVIRONMENT, METHOD, found)
)


def merged(*several: LatencyTable) -> LatencyTable:
    return merge_tables({f"t{index}.json": table for index, table in enumerate(several)}).table


@given(st.lists(tables, min_size=1, max_size=3))
def test_the_order_of_the_tables_does_not_matter(several: list[LatencyTable]) -> None:
    results = [merged(*order) for order in itertools.permutations(several)]
    assert all(result == results[0] for result in results)
    assert set(results[0].entries) == {key for table in several for key in table.entries}
    assert merged(results[0], *several) == results[0]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Entry(ms=2.0, spread=0.3, n=9), Entry(ms=1.0, spread=0.01, n=27, unstable=True)),
        (Entry(ms=1.0, spread=0.02, n=9), Entry(ms=2.0, spread=0.01, n=27)),
        (Entry(ms=1.0, spread=0.01, n=9), Entry(ms=1.0, spread=0.02, n=27)),
        (Entry(ms=1.0, spread=0.01, n=27), Entry(ms=1.0, spread=0.01, n=9)),
    ],
    ids=["steady", "faster", "smaller spread", "more samples"],
)
def test_the_entry_to_trust(better: Entry, worse: Entry) -> None:
    assert better_entry(better, worse) == better_entry(worse, better) == better


def test_shards_make_the_table_that_one_run_makes() -> None:
    signatures = [conv(3, channels) for channels in range(1, 12)]
    shards = [measure(signatures[index::3], FakeBackend()) for index in range(3)]
    assert merged(*shards) == measure(signatures, FakeBackend())


def test_how_far_repeated_entries_are_apart_is_told() -> None:
    one = LatencyTable(ENVIRONMENT, METHOD, {conv().key: Entry(ms=1.0, spread=0.0, n=9)})
    two = LatencyTable(
        ENVIRONMENT, METHOD, {conv().key: Entry(ms=1.5, spread=0.1, n=9), conv(3, 6).key: one.entries[conv().key]}
    )
    assert merge_tables({"a": one, "b": two}).disagreements == {conv().key: 0.5}


def test_a_failure_counts_only_where_nobody_succeeded() -> None:
    failing = LatencyTable(ENVIRONMENT, METHOD, {}, {conv().key: "no kernel", conv(3, 6).key: "no kernel"})
    fine = LatencyTable(ENVIRONMENT, METHOD, {conv().key: Entry(ms=1.0, spread=0.0, n=9)})
    for result in (merged(failing, fine), merged(fine, failing), fine.merged(failing), failing.merged(fine)):
        assert result.failures == {conv(3, 6).key: "no kernel"}


def test_a_calibration_is_kept_unless_another_table_has_another() -> None:
    fit = Calibration(0.1, 0.9, 0.02, 5)
    with_fit = LatencyTable(ENVIRONMENT, METHOD, {}, calibration=fit)
    without, other = replace(with_fit, calibration=None), replace(with_fit, calibration=replace(fit, slope=1.1))
    assert merged(with_fit, with_fit).calibration == merged(without, with_fit).calibration == fit
    assert merged(without, without).calibration is None
    assert merged(with_fit, without, other).calibration is None
    assert merge_tables({"a": with_fit, "b": without, "c": other}).calibrations == 2


@pytest.mark.parametrize("field", ["backend", "backend_version", "device", "threads", "precision"])
def test_tables_of_two_places_are_refused_by_field_and_file(field: str) -> None:
    other = 4 if field == "threads" else "other"
    here = LatencyTable(ENVIRONMENT, METHOD, {})
    there = LatencyTable(replace(ENVIRONMENT, **{field: other}), METHOD, {})
    with pytest.raises(TableMismatchError, match=rf"b.json was measured with {field} .*, but in a.json {field} is"):
        merge_tables({"a.json": here, "b.json": there})


def test_a_soft_difference_only_warns() -> None:
    here = LatencyTable(ENVIRONMENT, METHOD, {})
    with pytest.warns(UserWarning, match=r"b.json was measured with os 'other', but in a.json os is 'none'"):
        merge_tables({"a.json": here, "b.json": replace(here, environment=replace(ENVIRONMENT, os="other"))})


def test_no_table_is_refused() -> None:
    with pytest.raises(TableError, match="there is no table to merge"):
        merge_tables({})


def test_failures_and_calibration_come_back_from_disk(tmp_path: Path) -> None:
    table = LatencyTable(ENVIRONMENT, METHOD, {}, {conv().key: "no kernel"}, Calibration(0.1, 0.9, 0.02, 5))
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table


def test_a_table_from_before_failures_were_kept_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    LatencyTable(ENVIRONMENT, METHOD, {}).save(path)
    content = json.loads(path.read_text())
    del content["failures"], content["calibration"]
    path.write_text(json.dumps(content))
    assert LatencyTable.load(path) == LatencyTable(ENVIRONMENT, METHOD, {})


def test_a_failure_of_what_is_no_operator_is_refused(tmp_path: Path) -> None:
    LatencyTable(ENVIRONMENT, METHOD, {}, {"conv": "no kernel"}).save(tmp_path / "t.json")
    with pytest.raises(TableError, match="'conv' is not an operator key"):
        LatencyTable.load(tmp_path / "t.json")


def test_a_calibration_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="the latency table holds a number that is not finite"):
        LatencyTable(ENVIRONMENT, METHOD, {}, calibration=Calibration(math.nan, 1.0, 0.0, 1)).save(tmp_path / "t.json")


def test_what_a_killed_writer_left_behind_goes_with_time(tmp_path: Path) -> None:
    path = tmp_path / "t[1].json"
    stale, young, other = (tmp_path / name for name in (".t[1].json.7.tmp", ".t[1].json.8.tmp", ".t1.json.7.tmp"))
    for draft in (stale, young, other):
        draft.touch()
    for draft in (stale, other):
        os.utime(draft, (0, 0))
    update_table(path, LatencyTable(ENVIRONMENT, METHOD, {}))
    assert not stale.exists()
    assert young.exists()
    assert other.exists()
