import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from depthcomp_errors import TableError
from latency_tables import NoisyRow, import_kim23

LATENCY = "id,st,end,time,stdev\n0,0,1,2.0,0.1\n1,0,2,3.5,0.2\n2,1,2,2.5,0.3\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return _write


def test_latencies_by_span(write: Write) -> None:
    table = import_kim23(write(LATENCY))
    assert table.ms == {(0, 1): 2.0, (0, 2): 3.5, (1, 2): 2.5}
    assert table.spread[1, 2] == 0.3 / 2.5
    assert (table.breaks, table.noisy) == ({}, [])


def test_breaks_inside_each_span(write: Write) -> None:
    table = import_kim23(write('st,end,time,stdev,breaks\n0,1,2,0,"0,1"\n0,3,6,0,"0,1,3"\n'))
    assert table.breaks == {(0, 1): (), (0, 3): (1,)}


def test_layermerge_kernels(write: Write) -> None:
    rows = "0,1,3,1,False,2.0,0.1\n0,1,3,1,True,1.0,0.1\n0,1,0,1,False,0.0,0.0\n"
    table = import_kim23(write(f"st,end,ker,str,is_dw,time,stdev\n{rows}"))
    assert table.ms == {(0, 1, (3, 1, False)): 2.0, (0, 1, (3, 1, True)): 1.0, (0, 1, (0, 1, False)): 0.0}
    assert table.spread[0, 1, (0, 1, False)] == 0


def test_rows_in_any_order_and_lines_of_any_system(write: Write) -> None:
    header, *rows = LATENCY.splitlines()
    turned = "\r\n".join(["\ufeff" + header, *reversed(rows), ""])
    assert import_kim23(write(turned)).ms == import_kim23(write(LATENCY)).ms
    assert import_kim23(write(f"{LATENCY}\n\n")).ms == import_kim23(write(LATENCY)).ms


def test_columns_in_any_order(write: Write) -> None:
    assert import_kim23(write("time,stdev,end,st\n2.0,0.1,1,0\n")).ms == {(0, 1): 2.0}


def test_noisy_rows_are_kept_and_named(write: Write) -> None:
    path = write(LATENCY + "3,2,3,1.0,0.85\n4,0,3,1.0,0.15\n5,1,3,0.0,0.1\n")
    with pytest.warns(UserWarning, match=r"of 2 of 6 rows is above 15% .*: line 7 \(1, 3\) inf%, line 5 \(2, 3\) 85%$"):
        table = import_kim23(path)
    assert table.noisy == [NoisyRow((2, 3), 5, 1.0, 0.85), NoisyRow((1, 3), 7, 0.0, float("inf"))]
    assert table.ms[2, 3] == 1.0


def test_the_warning_names_the_worst_rows_only(write: Write) -> None:
    rows = "".join(f"{i},{i + 1},1.0,{0.2 + i / 100}\n" for i in range(9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(import_kim23(write(f"st,end,time,stdev\n{rows}")).noisy) == 9
    assert str(caught[0].message).endswith("line 6 (4, 5) 24%, ...")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", r"table.csv is empty; give a CSV table with the columns st, end, time, stdev"),
        ("\n", r"table.csv is empty"),
        ("st,end,time,stdev\n", r"table.csv has column names and no rows"),
        ("st,end,time\n0,1,2.0\n", r"line 1: the table lacks the column 'stdev'; it has st, end, time"),
        ("st,end,time,stdev,st\n0,1,2.0,0,0\n", r"line 1: the table names a column twice"),
        (LATENCY + "3,2,3,1.", r"line 5: the line has 4 fields and the first line 5: it is truncated or damaged"),
        (LATENCY + "3,2,3,1.0,0.1,9\n", r"line 5: the line has 6 fields and the first line 5"),
        (LATENCY + "3,2,3,fast,0.1\n", r"line 5: time \(='fast'\) must be a finite number"),
        (LATENCY + "3,2,3,nan,0.1\n", r"line 5: time \(='nan'\) must be a finite number"),
        (LATENCY + "3,2,3,,0.1\n", r"line 5: time \(=''\) must be a finite number"),
        (LATENCY + "3,2,3,1.0,inf\n", r"line 5: stdev \(='inf'\) must be a finite number"),
        (LATENCY + "3,2,3,-1.0,0.1\n", r"line 5: time \(=-1.0\) and stdev \(=0.1\) must be at least 0 ms"),
        (LATENCY + "3,2.5,3,1.0,0.1\n", r"line 5: st \(='2.5'\) must be an integer of at least 0"),
        (LATENCY + "3,-1,3,1.0,0.1\n", r"line 5: st \(='-1'\) must be an integer of at least 0"),
        (LATENCY + "3,3,3,1.0,0.1\n", r"line 5: st \(=3\) must be less than end \(=3\)"),
        (LATENCY + "3,0,2,1.0,0.1\n", r"line 5: \(0, 2\) stands in the table twice"),
        (LATENCY + '3,2,3,"1.0,0.1\n', r"line 5: unexpected end of data; the line is truncated or damaged"),
        ('st,end,time,stdev,breaks\n0,2,1,0,"0,x,2"\n', r"line 2: breaks \(='0,x,2'\) must be positions with commas"),
        ('st,end,time,stdev,breaks\n0,2,1,0,"0,1"\n', r"line 2: breaks \(='0,1'\) must rise from st to end"),
        ('st,end,time,stdev,breaks\n0,3,1,0,"0,2,1,3"\n', r"line 2: breaks \(='0,2,1,3'\) must rise from st to end"),
        ("st,end,ker,time,stdev\n0,1,3,1,0\n", r"line 1: the table has ker; it needs ker, str, is_dw"),
        ("st,end,ker,str,is_dw,time,stdev\n0,1,3,1,maybe,1,0\n", r"line 2: is_dw \(='maybe'\) must be True or False"),
    ],
)
def test_malformed_files(write: Write, text: str, fault: str) -> None:
    with pytest.raises(TableError, match=fault):
        import_kim23(write(text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot read the table .*none.csv: No such file or directory"):
        import_kim23(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00st")
    with pytest.raises(TableError, match=r"binary.csv is no text file"):
        import_kim23(str(tmp_path / "binary.csv"))


def test_a_position_of_very_many_digits(write: Write) -> None:
    with pytest.raises(TableError, match=r"line 2: breaks \(=.*\) must be positions with commas between them"):
        import_kim23(write(f'st,end,time,stdev,breaks\n0,2,2,0,"0,{5000 * "1"},2"\n'))


def test_no_path() -> None:
    with pytest.raises(TableError, match=r"the path of a table \(=None\) must be a string or a Path; give that"):
        import_kim23(None)
