"""The script on tables of our own: two networks by hand, and answers that are right, wrong, or from elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce_kim23.py"
TIME = "id,st,end,time,stdev\n0,0,1,2.0,0.1\n1,0,2,5.0,0.1\n2,1,2,2.0,0.5\n"
OPT_TIME = 'id,st,end,time,stdev,breaks\n0,0,1,2.0,0.1,"0,1"\n1,0,2,4.0,0.1,"0,1,2"\n2,1,2,2.0,0.5,"1,2"\n'
IMPORTANCE = "st,end,st_act,end_act,imp\n0,1,1,1,0.2\n0,2,1,1,0.1\n1,2,1,1,0.1\n"
ANSWER = {
    "net": "tiny", "importance": "importance_seed0.csv", "budget_ms": 3.9, "prec": 1, "value": 0.2 + 0.1,
    "time_ms": 4.0, "over_budget_pct": 2.6, "seconds": 0.1, "A": [1, 2], "S": [1, 2],
}  # fmt: skip


def reproduce(folder: Path, answer: dict[str, object], opt_time: str = OPT_TIME) -> subprocess.CompletedProcess[str]:
    (folder / "tiny").mkdir()
    for name, text in (("time_a.csv", TIME), ("opt_time_a.csv", opt_time), ("importance_seed0.csv", IMPORTANCE)):
        (folder / "tiny" / name).write_text(text)
    (folder / "reference_solutions.json").write_text(json.dumps([answer]))
    return subprocess.run([sys.executable, SCRIPT, "--tables", folder], capture_output=True, text=True, check=False)


def test_an_answer_that_agrees(tmp_path: Path) -> None:
    done = reproduce(tmp_path, ANSWER | {"budget_ms": 4.0})
    assert done.returncode == 0, done.stderr
    assert "T_opt of 3 spans equals the published one" in done.stdout
    assert "equals its value in 1 (same A and S in 1)" in done.stdout
    assert "ours exceeds it in 0, the reference in 0" in done.stdout


@pytest.mark.parametrize("change", [{"value": 0.31}, {"value": 0.1, "time_ms": 4.5}])
def test_another_optimum_fails(tmp_path: Path, change: dict[str, object]) -> None:
    done = reproduce(tmp_path, ANSWER | {"budget_ms": 4.0} | change)
    assert done.returncode == 1
    assert "FAILED" in done.stdout


def test_boundaries_that_differ_are_counted_only(tmp_path: Path) -> None:
    done = reproduce(tmp_path, ANSWER | {"budget_ms": 4.0, "S": [2]})
    assert done.returncode == 0, done.stderr
    assert "(same A and S in 0)" in done.stdout


def test_another_optimal_latency_fails(tmp_path: Path) -> None:
    done = reproduce(tmp_path, ANSWER | {"budget_ms": 4.0}, OPT_TIME.replace("4.0", "4.5"))
    assert done.returncode == 1
    assert "T_opt of 3 spans DIFFERS FROM the published one" in done.stdout
