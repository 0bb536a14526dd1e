"""The solver's scripts on tables of our own: a network by hand, and answers that are right or wrong."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import pytest
from script_tables import ANSWER, OPT_TIME, Answer, script, write_tables

pytestmark = pytest.mark.whole


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
