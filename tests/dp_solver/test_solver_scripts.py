"""The solver's scripts on tables of our own: a network by hand, and answers that are right or wrong."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TIME = "id,st,end,time,stdev\n0,0,1,2.0,0.1\n1,0,2,5.0,0.1\n2,1,2,2.0,0.5\n"
OPT_TIME = 'id,st,end,time,stdev,breaks\n0,0,1,2.0,0.1,"0,1"\n1,0,2,4.0,0.1,"0,1,2"\n2,1,2,2.0,0.5,"1,2"\n'
IMPORTANCE = "st,end,st_act,end_act,imp\n0,1,1,1,0.2\n0,2,1,1,0.1\n1,2,1,1,0.1\n"
ANSWER = {
    "net": "mbv2_1.0", "importance": "importance_seed0.csv", "budget_ms": 4.0, "prec": 1, "value": 0.2 + 0.1,
    "time_ms": 4.0, "over_budget_pct": 0.0, "seconds": 0.1, "A": [1, 2], "S": [1, 2],
}  # fmt: skip
Answer = dict[str, object]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def write_tables(folder: Path, answer: Answer, opt_time: str = OPT_TIME) -> None:
    net = folder / "mbv2_1.0"
    net.mkdir()
    for name, text in (("time_a.csv", TIME), ("opt_time_a.csv", opt_time), ("importance_seed0.csv", IMPORTANCE)):
        (net / name).write_text(text)
    (folder / "reference_solutions.json").write_text(json.dumps([answer]))


@pytest.fixture(scope="module")
def reproduce_kim23() -> ModuleType:
    return script("reproduce_kim23")


def test_an_answer_that_agrees(reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path, ANSWER)
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "T_opt of 3 spans equals the published one" in shown
    assert "1 of 3 latencies have a spread above 15 %" in shown
    assert "equals its value in 1, priced anew from the raw latencies of the merges (same A and S in 1)" in shown
    assert "ours exceeds it in 0, the reference in 0" in shown


@pytest.mark.parametrize("change", [{"value": 0.31}, {"value": 0.1, "time_ms": 4.5}, {"S": [2]}, {"S": [1]}])
def test_another_optimum_fails(
    reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Answer
) -> None:
    write_tables(tmp_path, ANSWER | change)
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_another_optimal_latency_fails(
    reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path, ANSWER, OPT_TIME.replace("4.0", "4.5"))
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 1
    assert "T_opt of 3 spans DIFFERS FROM the published one" in capsys.readouterr().out


def test_a_budget_that_only_rounding_down_meets(
    reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path, ANSWER | {"budget_ms": 3.9})
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no plan" in shown
    assert "ours exceeds it in 0, the reference in 1, by up to 2.56 %" in shown


def test_activations_that_differ_are_counted_only(
    reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path, ANSWER | {"A": [2]})
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 0
    assert "(same A and S in 0)" in capsys.readouterr().out


@pytest.mark.parametrize(("field", "wrong"), [("cost_ms", 3.5), ("merge_ends", (2,)), ("merge_ends", (1,))])
def test_a_plan_whose_merges_take_other_than_it_says_fails(
    reproduce_kim23: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    wrong: object,
) -> None:
    write_tables(tmp_path, ANSWER)
    right = reproduce_kim23._within
    monkeypatch.setattr(reproduce_kim23, "_within", lambda *of: dataclasses.replace(right(*of), **{field: wrong}))
    assert reproduce_kim23.main(["--tables", str(tmp_path)]) == 1
    assert "ours exceeds it in 1" in capsys.readouterr().out


def test_a_folder_without_answers(
    reproduce_kim23: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        reproduce_kim23.main(["--tables", str(tmp_path)])
    assert "reference_solutions.json does not exist" in capsys.readouterr().err


def test_the_benchmark_writes_numbers_and_a_plot_and_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = script("bench_solver")
    monkeypatch.setattr(bench, "LENGTHS", (6, 13))
    write_tables(tmp_path, ANSWER)
    out = tmp_path / "docs" / "solver.json"
    bench.main(["--tables", str(tmp_path), "--rounds", "2", "--scaling-rounds", "2", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["mobilenet_v2"]["frontier"]["n"] == 2
    assert {row["cuts"] for row in content["scaling"]["chains"]} == {6, 13}
    assert all(row["n"] == 2 and row["labels"] >= row["points"] for row in content["scaling"]["chains"])
    assert str(tmp_path) not in out.read_text()
    assert "<svg" in out.with_suffix(".svg").read_text()
    assert "whole frontier" in capsys.readouterr().out
    monkeypatch.setattr(bench, "machine", lambda: "another")
    bench.main(["--scaling-rounds", "1", "--out", str(out)])
    again = json.loads(out.read_text())
    assert again["mobilenet_v2"] == content["mobilenet_v2"]  # not measured now: its machine and date stay, too
    assert again["scaling"]["machine"] == "another" != again["mobilenet_v2"]["machine"]
