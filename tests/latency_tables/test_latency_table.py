import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_backend import ENVIRONMENT, conv
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import TableError, TableMismatchError
from latency_tables import Calibration, Entry, LatencyTable, Method
from latency_tables.tables.table_file import require_writable_table
from latency_tables.tables.table_update import update_table

METHOD = Method(
    estimator="minimum of round medians",
    rounds=3,
    samples_per_round=3,
    sample_ms=3.0,
    warmup_ms=20.0,
    seed=0,
    overhead_ms=0.004,
)
positive = st.floats(0, 1e6)
entry_values = st.builds(Entry, ms=positive, spread=positive, n=st.integers(1, 99), unstable=st.booleans())
keys = st.builds(lambda channels: conv(3, channels).key, st.integers(1, 500))


def table_of(entries: dict[str, Entry]) -> LatencyTable:
    return LatencyTable(ENVIRONMENT, METHOD, entries)


@pytest.fixture
def table() -> LatencyTable:
    return table_of({conv().key: Entry(ms=0.25, spread=0.01, n=9)})


@given(st.dictionaries(keys, entry_values, max_size=5))
def test_a_table_comes_back_from_disk(tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Entry]) -> None:
    path = tmp_path_factory.getbasetemp() / "table.json"
    table_of(entries).save(path)
    assert LatencyTable.load(path) == table_of(entries)


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    several = {conv(3, channels).key: Entry(ms=channels, spread=0.0, n=9) for channels in (3, 1, 2)}
    table_of(several).save(tmp_path / "a.json")
    table_of(dict(sorted(several.items()))).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_table_of_a_version_that_timed_no_sentinel_is_read(tmp_path: Path, table: LatencyTable) -> None:
    table.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    del content["method"]["drift_limit"], content["entries"][conv().key]["drifted"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert LatencyTable.load(tmp_path / "t.json") == table


def test_a_link_to_a_table_stays_one_and_the_table_grows(tmp_path: Path, table: LatencyTable) -> None:
    shared, link = tmp_path / "shared" / "t.json", tmp_path / "link.json"
    shared.parent.mkdir()
    link.symlink_to(shared)
    update_table(link, table)  # what it leads to need not be there
    update_table(link, table_of({conv(3, 6).key: Entry(ms=1.0, spread=0.0, n=9)}))
    assert link.is_symlink()
    assert len(LatencyTable.load(shared)) == 2
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["link.json", "t.json", "t.json.lock"]


def test_lookups(table: LatencyTable) -> None:
    assert table.ms(conv()) == 0.25
    assert conv() in table
    assert conv(3, 6) not in table
    assert len(table) == 1


def test_a_missing_key_is_named_with_the_way_to_add_it(table: LatencyTable) -> None:
    with pytest.raises(TableError, match=r"fake on abacus has no entry 'conv 1x3x11x7 -> 6 .*; add it with"):
        table.ms(conv(3, 6))


def test_merging_lets_the_other_win(table: LatencyTable) -> None:
    other = table_of({conv().key: Entry(ms=0.5, spread=0.0, n=9), conv(3, 6).key: Entry(ms=1, spread=0, n=9)})
    assert table.merged(other).entries == other.entries
    assert other.merged(table).ms(conv()) == 0.25
    assert len(other.merged(table)) == 2
    assert table.ms(conv()) == 0.25


def test_merging_keeps_the_fresher_line_to_whole_networks(table: LatencyTable) -> None:
    old, new = (replace(table, calibration=Calibration(0.1, slope, 0.01, 5)) for slope in (0.9, 1.1))
    assert old.merged(new).calibration == new.calibration
    assert old.merged(table).calibration == old.calibration
    assert table.merged(old).calibration == old.calibration


def test_tables_of_two_places_do_not_merge_unless_told(table: LatencyTable) -> None:
    other = replace(table, environment=replace(ENVIRONMENT, backend_version="2.0"))
    with pytest.raises(TableMismatchError, match=r"'1.0', but here .* '2.0'; .* or pass check_environment=False"):
        table.merged(other)
    assert len(table.merged(other, check_environment=False)) == 1


def test_a_foreign_environment_is_refused(table: LatencyTable) -> None:
    with pytest.raises(TableMismatchError, match="'fp16'; give another path, and a table is measured here"):
        table.check(replace(ENVIRONMENT, precision="fp16"))
    table.check(ENVIRONMENT)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ms": math.nan}, r"ms \(=nan\) of a table entry must be finite"),
        ({"ms": -0.1}, r"ms \(=-0.1\) of a table entry must be finite and not negative"),
        ({"spread": math.inf}, r"spread \(=inf\)"),
        ({"drifted": -1}, r"drifted \(=-1\) of a table entry must be finite and not negative"),
        ({"n": 0}, r"n \(=0\) of a table entry must be at least 1"),
    ],
)
def test_an_entry_holds_sane_numbers(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TableError, match=sentence):
        Entry(**({"ms": 1.0, "spread": 0.0, "n": 9} | fields))


@pytest.fixture
def content(table: LatencyTable, tmp_path: Path) -> Any:
    table.save(tmp_path / "table.json")
    return json.loads((tmp_path / "table.json").read_text())


def refused(tmp_path: Path, content: Any, sentence: str) -> None:
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(TableError, match=sentence):
        LatencyTable.load(tmp_path / "table.json")


def test_another_schema_version_is_refused(tmp_path: Path, content: Any) -> None:
    refused(tmp_path, content | {"schema_version": 1}, "has schema version 1, but this depthcomp reads version 2")


def test_json_that_is_no_table_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, [1, 2], "has schema version None")


def test_unknown_fields_are_refused(tmp_path: Path, content: Any) -> None:
    refused(tmp_path, content | {"colour": "red"}, "is no latency table: colour: Extra inputs")


def test_unknown_fields_of_the_environment_are_refused(tmp_path: Path, content: Any) -> None:
    content["environment"]["colour"] = "red"
    refused(tmp_path, content, r"environment.colour: Unexpected keyword argument|environment.colour: Extra")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (-1.0, r"entries\.conv .*\.ms: Input should be greater than or equal to 0"),
        (math.nan, "NaN is not a JSON number"),
        ("0.1", "valid number"),
    ],
)
def test_broken_latencies_are_refused(tmp_path: Path, content: Any, value: object, sentence: str) -> None:
    content["entries"][conv().key]["ms"] = value
    refused(tmp_path, content, sentence)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_a_stored_calibration_that_no_network_can_follow_is_refused(tmp_path: Path, content: Any, slope: float) -> None:
    content["calibration"] = {"intercept_ms": 0.1, "slope": slope, "residual_ms": 0.01, "n": 4}
    refused(tmp_path, content, "calibration.slope: Input should be greater than 0")


def test_a_key_that_is_no_signature_is_refused(tmp_path: Path, content: Any) -> None:
    content["entries"]["conv"] = content["entries"].pop(conv().key)
    refused(tmp_path, content, "'conv' is not an operator key")


def test_a_truncated_table_is_refused_wherever_it_ends(tmp_path: Path, content: Any) -> None:
    text = (tmp_path / "table.json").read_text().rstrip()
    for length in range(0, len(text), 17):
        (tmp_path / "table.json").write_text(text[:length])
        with pytest.raises(TableError, match="is truncated or not JSON"):
            LatencyTable.load(tmp_path / "table.json")


def test_json_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("[" * 100_000)
    with pytest.raises(TableError, match="is truncated or not JSON"):
        LatencyTable.load(tmp_path / "table.json")


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot read the latency table .*absent.json: No such file"):
        LatencyTable.load(tmp_path / "absent.json")


@pytest.mark.parametrize("path", ["absent/table.json", "file/table.json", "folder"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, table: LatencyTable, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableError, match=r"cannot write the latency table .*; choose a folder"):
        table.save(tmp_path / path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("absent/table.json", "its folder does not exist; create that first"),
        ("file/table.json", "its folder does not exist; create that first"),
        ("folder", "it is a folder; add a file name to it"),
    ],
)
def test_a_path_that_cannot_be_written_is_known_beforehand(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableError, match=f"cannot write the latency table .*{path}: {sentence}"):
        require_writable_table(tmp_path / path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_permission_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable_table(tmp_path / "table.json")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(TableError, match=r"its folder cannot be written to; choose another, or load the table"):
        require_writable_table(tmp_path / "table.json")


@pytest.mark.usefixtures("content")
def test_a_number_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path, table: LatencyTable) -> None:
    broken = replace(table, method=replace(METHOD, overhead_ms=math.nan))
    with pytest.raises(TableError, match="the latency table holds a number that is not finite"):
        broken.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
