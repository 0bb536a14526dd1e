import json
from pathlib import Path
from typing import Any

import pytest
from fake_backend import ENVIRONMENT, conv
from hypothesis import given
from hypothesis import strategies as st

import latency_tables
from depthcomp_errors import TableError
from latency_tables import LatencyTable, Method
from latency_tables.fleet.work import Origin, Shard, Work
from latency_tables.tables.table_file import published_schema

pytestmark = pytest.mark.whole

METHOD = Method(
    estimator="by hand", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.0
)


def work_of(*channels: int, model: str = "toy", place: str = "stem") -> Work:
    return Work({conv(3, count).key: (Origin(model, 1, (place,)),) for count in channels})


@given(st.sets(st.integers(1, 99), max_size=40), st.integers(1, 9))
def test_the_shards_partition_the_work(channels: set[int], count: int) -> None:
    work = work_of(*channels)
    shards = [work.signatures(Shard(index, count)) for index in range(count)]
    assert sorted(signature for shard in shards for signature in shard) == work.signatures()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_shards_do_not_depend_on_the_order_of_the_file() -> None:
    forwards, backwards = work_of(*range(1, 20)), work_of(*range(19, 0, -1))
    assert forwards.signatures(Shard(1, 3)) == backwards.signatures(Shard(1, 3))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("4/4", "shard 4/4 does not exist; they count from zero: 0/4 to 3/4"),
        ("0/0", "shard 0/0 does not exist; they count from zero: 0/1"),
        ("1", "shard '1' must be INDEX/COUNT, such as 0/4 for the first of four"),
        ("-1/4", "shard '-1/4' must be INDEX/COUNT"),
        ("1/4/2", "must be INDEX/COUNT"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(TableError, match=sentence):
        Shard.parse(text)


def test_a_work_comes_back_from_disk_as_equal_bytes(tmp_path: Path) -> None:
    work = work_of(3, 1, 2)
    work.save(tmp_path / "a.json")
    assert Work.load(tmp_path / "a.json") == work
    Work(dict(sorted(work.operators.items()))).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_operator_of_two_models_is_listed_once_with_both() -> None:
    both = work_of(1, 2).merged(work_of(2, 3, model="other")).merged(work_of(2, place="head"))
    assert len(both) == 3
    assert both.operators[conv(3, 2).key] == (Origin("other", 1, ("stem",)), Origin("toy", 1, ("head", "stem")))


@pytest.fixture
def content(tmp_path: Path) -> Any:
    work_of(1).save(tmp_path / "work.json")
    return json.loads((tmp_path / "work.json").read_text())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"work_version": 2}, "has work version 2, but this depthcomp reads version 1; plan anew"),
        ({"kind": "roofline estimate"}, "holds a roofline estimate, and a work file is needed"),
        ({"colour": "red"}, "is no work file: colour: Extra inputs"),
        ({"operators": {"conv": []}}, "'conv' is not an operator key"),
        (
            {"operators": {conv().key: [{"model": "m", "batch": "1", "places": []}]}},
            "batch: Input should be a valid int",
        ),
    ],
)
def test_what_is_no_work_is_refused(tmp_path: Path, content: Any, change: dict[str, Any], sentence: str) -> None:
    (tmp_path / "work.json").write_text(json.dumps(content | change))
    with pytest.raises(TableError, match=sentence):
        Work.load(tmp_path / "work.json")


def test_a_table_is_no_work_and_a_work_no_table(tmp_path: Path) -> None:
    LatencyTable(ENVIRONMENT, METHOD, {}).save(tmp_path / "table.json")
    work_of(1).save(tmp_path / "work.json")
    with pytest.raises(TableError, match=r"table.json holds a latency table, and a work file is needed"):
        Work.load(tmp_path / "table.json")
    with pytest.raises(TableError, match=r"work.json holds a work file, and a latency table is needed"):
        LatencyTable.load(tmp_path / "work.json")


def test_the_published_schema_is_up_to_date() -> None:
    remedy = "run `depthcomp tables schema > latency_tables/data/schema.json`"
    schema = Path(latency_tables.__file__).parent / "data" / "schema.json"
    assert schema.read_text() == published_schema(), remedy


def test_the_published_schema_names_what_a_table_holds() -> None:
    schema = json.loads(published_schema())
    assert set(schema["properties"]) == {
        "schema_version", "environment", "method", "entries", "failures", "calibration",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]["Entry"]["required"]) == {"ms", "spread", "n"}
