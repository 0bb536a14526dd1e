"""Input that the solver's scripts cannot use ends in one sentence and a non-zero exit code, never in a traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from script_tables import ANSWER, SCRIPTS, TIME, Answer, script, write_tables

pytestmark = pytest.mark.whole

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    return {name: script(name) for name in ("reproduce_kim23", "bench_solver")}


@pytest.fixture
def refused(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refused:
    """Run a script that is to refuse its input, before it times anything, and return its sentence."""

    def run(name: str, *arguments: str) -> str:
        if name == "bench_solver":
            monkeypatch.setattr(scripts[name], "bench_scaling", None)
            arguments = ("--out", str(tmp_path / "out" / "solver.json"), *arguments)
        with pytest.raises(SystemExit, match="2"):
            scripts[name].main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert sum(": error: " in line for line in lines) == 1
        assert ": error: " in lines[-1]
        return lines[-1].partition(": error: ")[2]

    return run


both = pytest.mark.parametrize("name", ["reproduce_kim23", "bench_solver"])


@both
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not JSON"),
        ('[{"net": "mbv2', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "holds an empty list; it must hold a list of at least one answer"),
        ("{}", "holds a dict; it must hold a list"),
        ("null", "holds a NoneType; it must hold a list"),
        ("[1]", "answer 0 is a int; it must be an object with net, importance, budget_ms"),
        ('[{"net": "mbv2_1.0"}]', "answer 0 lacks 'importance'; it must have net, importance"),
    ],
)
def test_answers_that_are_none(refused: Refused, tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / "reference_solutions.json").write_bytes(text.encode("latin-1"))
    shown = refused(name, "--tables", str(tmp_path))
    assert str(tmp_path / "reference_solutions.json") in shown
    assert sentence in shown


@both
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"net": "../mbv2_1.0"}, "net (='../mbv2_1.0') must be the name of a folder"),
        ({"net": 3}, "net (=3) must be the name of a folder"),
        ({"importance": ""}, "importance (='') must be the name of a file"),
        ({"budget_ms": 0}, "budget_ms (=0) must be a number above 0"),
        ({"value": "0.3"}, "value (='0.3') must be a number"),
        ({"value": 10**400}, "value (=1000"),
        ({"value": True}, "value (=True) must be a number"),
        ({"time_ms": float("nan")}, "time_ms (=nan) must be a number of at least 0"),
        ({"seconds": None}, "seconds (=None) must be a number above 0"),
        ({"S": [1, 2.0]}, "S (=[1, 2.0]) must be a list of integers"),
        ({"A": 2}, "A (=2) must be a list of integers"),
    ],
)
def test_malformed_answers(refused: Refused, tmp_path: Path, name: str, change: Answer, sentence: str) -> None:
    write_tables(tmp_path, ANSWER | change)
    assert f"answer 0: {sentence}" in refused(name, "--tables", str(tmp_path))


@both
def test_a_folder_that_is_missing_empty_or_a_file(refused: Refused, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for given, why in (("missing", "No such file"), ("folder", "No such file"), ("file", "Not a directory")):
        shown = refused(name, "--tables", str(tmp_path / given))
        assert f"reference_solutions.json cannot be read ({why}" in shown
        assert "give the folder that holds it and the tables" in shown


@both
def test_a_network_without_folder_or_tables(refused: Refused, tmp_path: Path, name: str) -> None:
    write_tables(tmp_path, ANSWER)
    net = tmp_path / "mbv2_1.0"
    (net / "time_b.csv").write_text(TIME)
    assert f"{net} holds 2 files time_*.csv; give a folder with one" in refused(name, "--tables", str(tmp_path))
    for path in net.glob("time_*"):
        path.unlink()
    assert f"{net} holds 0 files time_*.csv; give a folder with one" in refused(name, "--tables", str(tmp_path))
    net.rename(tmp_path / "other")
    assert f"{net} is no folder; give a folder with one table" in refused(name, "--tables", str(tmp_path))


@both
@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("time_a.csv", TIME[:-9], "time_a.csv, line 4: "),
        ("time_a.csv", "", "time_a.csv"),
        ("time_a.csv", TIME.replace("2.0", "fast", 1), "line 2: time (='fast') must be a finite number"),
        ("importance_seed0.csv", "st,end,st_act,end_act,imp\n0,1,1", "importance_seed0.csv, line 2: "),
        ("importance_seed0.csv", "st,end,st_act,end_act,imp\n0,3,1,1,0.1\n", "1 entries of I have no latency in T"),
        ("importance_seed0.csv", None, "importance_seed0.csv"),
    ],
)
def test_malformed_tables(
    refused: Refused, tmp_path: Path, name: str, file: str, text: str | None, sentence: str
) -> None:
    write_tables(tmp_path, ANSWER)
    path = tmp_path / "mbv2_1.0" / file
    path.unlink() if text is None else path.write_text(text)
    assert sentence in refused(name, "--tables", str(tmp_path))


def test_an_answer_that_no_plan_is_fast_enough_for_fails(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path, ANSWER | {"time_ms": 3.0})
    assert scripts["reproduce_kim23"].main(["--tables", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_comparison_needs_tables(refused: Refused) -> None:
    assert refused("reproduce_kim23") == "the following arguments are required: --tables"


@pytest.mark.parametrize("option", ["--rounds", "--scaling-rounds"])
@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many", ""])
def test_unusable_rounds(refused: Refused, option: str, count: str) -> None:
    assert refused("bench_solver", option, count) == f"argument {option}: {count!r} must be an integer of at least 1"


def test_a_benchmark_of_another_network(refused: Refused, tmp_path: Path) -> None:
    write_tables(tmp_path, ANSWER | {"net": "vgg19"})
    assert "has no answer for mbv2_1.0; give the folder of the published" in refused(
        "bench_solver", "--tables", str(tmp_path)
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no results of an earlier run; name another file with --out, or delete it"),
        ("{}", "holds no results of an earlier run"),
        ('{"mobilenet_v2": {}, "scaling": {"chains": []}}', "holds no results of an earlier run"),
        ('{"scaling": {"chains": [{"cuts": 3}]}}', "holds no results of an earlier run"),
    ],
)
def test_earlier_results_that_are_none_stay_as_they_are(
    refused: Refused, tmp_path: Path, text: str, sentence: str
) -> None:
    out = tmp_path / "earlier.json"
    out.write_text(text)
    assert sentence in refused("bench_solver", "--out", str(out))
    assert out.read_text() == text


def test_results_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made" in refused("bench_solver", "--out", str(tmp_path / "file" / "solver.json"))
    assert "cannot be read (Is a directory); name another file" in refused("bench_solver", "--out", str(tmp_path))


@both
def test_from_the_command_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "reference_solutions.json").write_text(json.dumps([]))
    out = ["--out", str(tmp_path / "o.json")] if name == "bench_solver" else []
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--tables", str(tmp_path), *out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}.py: error: ")
    assert done.stderr.count("\n") == 1
