from pathlib import Path

import pytest

from depthcomp_errors import TableError
from dp_solver import two_stage
from latency_tables import import_kim23
from latency_tables.published.importances import import_importance


def write(folder: Path, text: str) -> Path:
    path = folder / "importance.csv"
    path.write_text(text)
    return path


def test_importances_by_span_and_states(tmp_path: Path) -> None:
    path = write(tmp_path, "st,end,st_act,end_act,imp\n0,1,1,0,-0.25\n0,1,1,1,0.5\n")
    assert import_importance(path) == {(0, 1, 1, 0): -0.25, (0, 1, 1, 1): 0.5}


def test_raw_scores_by_name_and_losses_negated(tmp_path: Path) -> None:
    path = write(tmp_path, ",id,st,end,st_act,end_act,val_acc,val_loss_ratio\n0,0,0,1,1,1,-1.5,0.25\n")
    assert import_importance(path, column="val_acc") == {(0, 1, 1, 1): -1.5}
    assert import_importance(path, column="val_loss_ratio") == {(0, 1, 1, 1): -0.25}


def test_layermerge_has_kernels_in_place_of_states(tmp_path: Path) -> None:
    path = write(tmp_path, ',id,st,end,ker,str,is_dw,conv_comb,importance\n0,0,0,2,3,1,False,"(1, 2)",0.9\n')
    assert import_importance(path) == {(0, 2, 1, 1, (3, 1, False)): 0.9}


def test_latencies_and_importances_meet_in_the_solver(tmp_path: Path) -> None:
    latency = tmp_path / "time.csv"
    latency.write_text("st,end,ker,str,is_dw,time,stdev\n0,1,5,1,False,2.0,0.1\n0,1,3,1,False,1.0,0.1\n")
    importance = write(tmp_path, "st,end,ker,str,is_dw,importance\n0,1,3,1,False,0.7\n0,1,5,1,False,0.9\n")
    found = two_stage(import_kim23(latency).ms, import_importance(importance), 1.5)
    assert found.keys == ((0, 1, 1, 1, (3, 1, False)),)
    assert found.value == 0.7


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", r"importance.csv is empty"),
        ("st,end,imp\n0,1,0.5\n", r"line 1: the table lacks the column 'st_act'; it has st, end, imp"),
        ("st,end,st_act,end_act,val_acc\n0,1,1,1,0.5\n", r"has no column imp or importance; name the score to read"),
        ("st,end,st_act,end_act,imp\n0,1,1,2,0.5\n", r"line 2: st_act and end_act \(=\(1, 2\)\) must be 0 or 1"),
        ("st,end,st_act,end_act,imp\n0,1,1,1,-inf\n", r"line 2: imp \(='-inf'\) must be a finite number"),
        (
            "st,end,st_act,end_act,imp\n0,1,1,1,1\n0,1,1,1,2\n",
            r"line 3: \(0, 1, 1, 1\) stands in the table twice",
        ),
        ("st,end,st_act,end_act,imp\n0,1,1,1\n", r"line 2: the line has 4 fields and the first line 5"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(TableError, match=fault):
        import_importance(write(tmp_path, text))


def test_a_score_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "st,end,st_act,end_act,imp\n0,1,1,1,0.5\n")
    with pytest.raises(TableError, match=r"line 1: the table lacks the column 'val_acc'; it has st, end, st_act"):
        import_importance(path, column="val_acc")
