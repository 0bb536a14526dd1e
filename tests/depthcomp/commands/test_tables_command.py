"""The command line for latency tables, from a plan to a merged table, as a script would call it."""

import json
import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depthcomp.commands.main import app
from depthcomp.errors import TableError
from latency_tables import Calibration, Entry, Environment, LatencyTable, Method, OperatorSignature
from latency_tables.fleet.work import Work
from latency_tables.measuring.chunk_process import TIMEOUT_S
from latency_tables.tables.table_file import published_schema

pytestmark = pytest.mark.whole

REPOSITORY = Path(__file__).parents[3]
MODULE = """
    from torch import nn

    def net(channels=5):
        model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 7, 3), nn.ReLU())
        model.pretrained_cfg = {"input_size": (3, 9, 11)}
        return model

    def wider():
        return net(6)
"""
ABACUS = """
    class Backend:
        name = "abacus"

        def __init__(self, threads):
            self.threads = threads

        def environment(self):
            from latency_tables import Environment
            return Environment(
                backend="abacus", backend_version="1", device="wood", threads=self.threads, precision="fp32",
                os="none", python="3", machine="beads",
            )

        def build(self, onnx_model):
            return Runner(len(onnx_model))

    class Runner:
        def __init__(self, size):
            self.size = size

        def time_ms(self, inner):
            return inner * self.size / 1e4

        def close(self):
            pass
"""
ENVIRONMENT = Environment(
    backend="abacus", backend_version="1", device="wood", threads=1, precision="fp32",
    os="none", python="3", machine="beads",
)  # fmt: skip
METHOD = Method(
    estimator="by hand", rounds=3, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0, seed=0, overhead_ms=0.004
)
KEYS = [
    OperatorSignature(op="conv", batch=1, in_channels=3, out_channels=n, in_size=(7, 5), kernel=(3, 3)).key
    for n in (4, 5, 6)
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder of its own that has models and a backend."""
    (tmp_path / "some_table_nets.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "some_abacus.py").write_text(textwrap.dedent(ABACUS))  # apart, as measuring needs no torch
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
    yield tmp_path
    for name in ("some_table_nets", "some_abacus"):
        sys.modules.pop(name, None)


def tables(*arguments, code=0):
    result = CliRunner().invoke(app, ["tables", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


def in_json(*arguments, code=0):
    return json.loads(tables(*arguments, "--json", code=code).stdout)


def refused(*arguments):
    result = tables(*arguments, code=2)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def write(name, entries, **fields):
    table = LatencyTable(ENVIRONMENT, METHOD, entries, **fields)
    table.save(name)
    return table


def entry(ms=0.25, **fields):
    return Entry(**{"ms": ms, "spread": 0.01, "n": 9, **fields})


RUN = ("--backend", "some_abacus:Backend")
TRTEXEC = ("import", "x.json", "--from", "trtexec", "--table", "t.json")


def test_from_plan_to_a_merged_table():
    planned = tables("plan", "some_table_nets:net", "some_table_nets:wider", "--batch", "1", "--batch", "4")
    assert planned.stdout.startswith("wrote work.json, ")
    assert "some_table_nets:net, batch 4: " in planned.stderr
    count = len(Work.load("work.json"))
    assert {s.batch for s in Work.load("work.json").signatures()} == {1, 4}
    for index in range(2):
        done = in_json("run", "work.json", "--shard", f"{index}/2", "--table", f"t{index}.json", *RUN)
        assert done["new"] == done["entries"] == (count + 1 - index) // 2
        assert done["failed"] == 0
        assert done["environment"]["backend"] == "abacus"
    merged = in_json("merge", "t0.json", "t1.json", "--out", "all.json")
    assert (merged["entries"], merged["failed"], merged["shared"]) == (count, 0, 0)
    again = in_json("run", "work.json", "--table", "all.json", *RUN)
    assert (again["new"], again["entries"]) == (0, count)
    assert in_json("check", "all.json")["sound"]


def test_equal_models_make_equal_work_files_in_any_order():
    tables("plan", "some_table_nets:net", "some_table_nets:wider", "--out", "a.json")
    tables("plan", "some_table_nets:wider", "some_table_nets:net", "--out", "b.json")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_a_model_that_shares_operators_adds_only_its_own():
    tables("plan", "some_table_nets:net", "--out", "one.json")
    tables("plan", "some_table_nets:net", "some_table_nets:wider", "--out", "two.json")
    first = in_json("run", "one.json", "--table", "t.json", *RUN)
    second = in_json("run", "two.json", "--table", "t.json", *RUN)
    assert second["new"] == len(Work.load("two.json")) - len(Work.load("one.json")) > 0
    assert second["entries"] == first["entries"] + second["new"]


def test_the_limit_for_a_build_that_hangs_is_passed_on(monkeypatch):
    seen = []

    def recorded(signatures, table, *, timeout_s, **options):
        seen.append(timeout_s)
        raise TableError("that is all.")

    monkeypatch.setattr("latency_tables.fleet.run_work.run_work", recorded)
    Work({KEYS[0]: ()}).save("work.json")
    for options in ((), ("--timeout-s", "12.5")):
        assert refused("run", "work.json", "--table", "t.json", *RUN, *options) == "error: that is all."
    assert seen == [TIMEOUT_S, 12.5]


def test_a_plan_says_nothing_of_random_weights(monkeypatch):
    monkeypatch.setattr("depthcomp.preparation.needed_operators", lambda model, example, limits: {})
    assert "random weights" not in tables("plan", "torchvision:squeezenet1_1").stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "absent.json", "--table", "t.json"), "error: cannot read the work file absent.json: No such file"),
        (("run", "work.json", "--table", "t.json", "--shard", "2/2"), "error: shard 2/2 does not exist; they count"),
        (("run", "work.json", "--table", "t.json", "--shard", "9/10"), "error: shard 9/10 of work.json holds no op"),
        (("run", "work.json", "--table", "no/t.json"), "error: cannot write the latency table no/t.json: its folder"),
        (("run", "work.json", "--table", "t.json", "--backend", "abacus"), "error: backend 'abacus' is unknown"),
        (("run", "t0.json", "--table", "t.json"), "error: t0.json holds a latency table, and a work file is needed"),
        (("merge", "work.json", "--out", "t.json"), "error: work.json holds a work file, and a latency table is nee"),
        (("plan", "timm:mobilnetv2_050"), "error: model timm:mobilnetv2_050 is unknown to timm; did you mean"),
        (("plan", "some_table_nets:net", "--out", "no/w.json"), "error: cannot write the work file no/w.json: its f"),
        (("check", "absent.json"), "error: cannot read the latency table absent.json: No such file"),
        (TRTEXEC, "error: a file of trtexec does not name its device"),
        ((*TRTEXEC, "--device", "A", "--backend-version", "1"), "error: x.json does not name the timed operator"),
        (("plan", "some_table_nets:net", "--out", "t0.json"), "error: t0.json holds a latency table, and a work"),
        (("estimate", "work.json", "--device", "t4", "--out", "t0.json"), "error: t0.json holds a latency table, and"),
        (("estimate", "work.json", "--device", "t4", "--out", "notes"), "error: notes is truncated or not JSON"),
        (("plan", "some_table_nets:net", "--out", "list.json"), "error: list.json is no work file, so it is not overw"),
        (("estimate", "work.json", "--device", "abacus"), "error: device 'abacus' is unknown; choose one of"),
        (("estimate", "work.json", "--device", "x", "--tflops", "1"), "error: device 'x' needs both --tflops and"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_code_2(arguments, sentence):
    Work({KEYS[0]: ()}).save("work.json")
    write("t0.json", {})
    Path("notes").write_text("mine")
    Path("list.json").write_text("[1]")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert refused(*arguments).startswith(sentence)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("field", "found", "options"),
    [
        ("threads", 1, ("--threads", "4")),
        ("device", "another CPU", ()),
        ("backend_version", "2", ()),
        ("backend", "another", ()),
    ],
)
def test_a_table_of_another_place_is_refused_by_its_field(field, found, options):
    Work({KEYS[0]: ()}).save("work.json")
    LatencyTable(replace(ENVIRONMENT, **{field: found}), METHOD, {}).save("t.json")
    line = refused("run", "work.json", "--table", "t.json", *RUN, *options)
    assert line.startswith(f"error: the latency table was measured with {field} {found!r}, but here {field} is ")


def test_tables_of_two_places_are_not_merged():
    write("a.json", {})
    LatencyTable(replace(ENVIRONMENT, backend_version="2"), METHOD, {}).save("b.json")
    assert "b.json was measured with backend_version '2', but in a.json backend_version is '1'" in refused(
        "merge", "a.json", "b.json", "--out", "c.json"
    )
    assert not Path("c.json").exists()


def test_merging_into_a_table_that_is_there_keeps_its_entries():
    write("old.json", {KEYS[0]: entry()})
    write("new.json", {KEYS[1]: entry()})
    tables("merge", "new.json", "--out", "old.json")
    assert set(LatencyTable.load("old.json").entries) == set(KEYS[:2])


def test_merging_tells_how_far_repeated_entries_are_apart():
    write("a.json", {KEYS[0]: entry(1.0)})
    write("b.json", {KEYS[0]: entry(1.1, spread=0.02)})
    text = tables("merge", "a.json", "b.json", "--out", "c.json").stdout
    assert "1 were in several tables, at most 10.0 % apart" in text


def test_merging_says_where_a_line_to_whole_networks_is_lost():
    fit = Calibration(0.1, 0.9, 0.02, 5)
    write("a.json", {KEYS[0]: entry()}, calibration=fit)
    write("b.json", {KEYS[1]: entry()})
    assert "calibrations on whole networks" not in tables("merge", "a.json", "b.json", "--out", "c.json").stderr
    assert LatencyTable.load("c.json").calibration == fit
    write("d.json", {KEYS[2]: entry()}, calibration=replace(fit, slope=1.1))
    assert "the tables' 2 calibrations on whole networks differ" in tables("merge", "c.json", "--out", "d.json").stderr
    assert LatencyTable.load("d.json").calibration is None


def test_check_reports_what_is_wrong_and_exits_with_1():
    fit = Calibration(0.1, 0.9, 0.02, 5)
    entries = {KEYS[0]: entry(0.9), KEYS[1]: entry(0.5), KEYS[2]: entry(1.0, spread=0.3, unstable=True, drifted=1)}
    failed = KEYS[0].replace("-> 4", "-> 9")
    write("t.json", entries, failures={failed: "no kernel"}, calibration=fit)
    text = tables("check", "t.json", code=1).stdout
    assert "call overhead 4.0 us (removed)" in text
    assert "slower than a larger one: 1 of 3" in text
    assert "unstable: 1 of 3" in text
    assert f"  {KEYS[2]}, spread 30.0 %" in text
    assert "measured partly while the machine changed its speed: 1 of 3" in text
    assert f"failed: 1 of 4\n  {failed}: no kernel" in text
    assert "whole networks, by the last compression: +0.100 ms + 0.900 x sum, residual 0.020 ms over 5 networks" in text
    content = in_json("check", "t.json", code=1)
    assert content["failures"] == {failed: "no kernel"}
    assert content["calibration"]["residual_ms"] == 0.02


def test_check_is_content_with_a_sound_table():
    write("t.json", {KEYS[0]: entry()})
    assert "no calibration on whole networks is stored" in tables("check", "t.json").stdout


def test_show_sorts_filters_and_limits():
    write("t.json", {KEYS[0]: entry(0.2), KEYS[1]: entry(0.9), KEYS[2]: entry(0.5, unstable=True, spread=0.3)})
    rows = in_json("show", "t.json", "--sort", "ms", "--limit", "2")["entries"]
    assert [row["key"] for row in rows] == [KEYS[1], KEYS[2]]
    assert [row["key"] for row in in_json("show", "t.json", "--filter", "-> 4", "--filter", "conv")["entries"]] == KEYS[
        :1
    ]
    text = tables("show", "t.json", "--sort", "spread").stdout
    assert "abacus 1, wood, threads=1, fp32" in text
    assert "30.0 % unstable" in text
    assert "3 of 3 entries, 0 failed" in text
    assert "no calibration on whole networks is stored" in text


def test_show_tells_the_line_to_whole_networks():
    write("t.json", {KEYS[0]: entry()}, calibration=Calibration(0.1, 0.9, 0.02, 5))
    assert "+0.100 ms + 0.900 x sum, residual 0.020 ms over 5 networks" in " ".join(
        tables("show", "t.json").stdout.split()
    )
    fit = in_json("show", "t.json")["calibration"]
    assert fit == {"intercept_ms": 0.1, "slope": 0.9, "residual_ms": 0.02, "n": 5}


def test_times_of_trtexec_become_a_table_and_join_one():
    Path("times.json").write_text(json.dumps([{"computeMs": 0.25, "latencyMs": 0.3}] * 12))
    place = ("--device", "NVIDIA A100", "--backend-version", "10.3")
    first = in_json("import", "times.json", "--from", "trtexec", "--table", "t.json", "--key", KEYS[0], *place)
    assert (first["imported"], first["entries"]) == (1, 1)
    tables("import", "times.json", "--from", "trtexec", "--table", "t.json", "--key", KEYS[1])
    table = LatencyTable.load("t.json")
    assert (table.environment.backend, table.environment.device) == ("tensorrt", "NVIDIA A100")
    assert {key: found.ms for key, found in table.entries.items()} == dict.fromkeys(KEYS[:2], 0.25)


def test_times_of_trtexec_do_not_change_how_a_table_says_it_was_measured():
    Path("times.json").write_text(json.dumps([{"computeMs": 0.25}] * 12))
    there = replace(ENVIRONMENT, backend="tensorrt", device="NVIDIA A100", backend_version="10.3")
    LatencyTable(there, METHOD, {KEYS[0]: entry()}).save("t.json")
    tables("import", "times.json", "--from", "trtexec", "--table", "t.json", "--key", KEYS[1])
    assert LatencyTable.load("t.json").method == METHOD
    assert LatencyTable.load("t.json").entries[KEYS[1]].n == 12


@pytest.mark.parametrize(
    ("field", "found", "options"),
    [
        ("backend", "arithmetic", ()),
        ("device", "NVIDIA A100", ("--device", "NVIDIA H100")),
        ("backend_version", "10.3", ("--backend-version", "11.0")),
        ("precision", "fp32", ("--precision", "fp16")),
    ],
)
def test_times_of_trtexec_join_no_table_of_another_place(field, found, options):
    Path("times.json").write_text(json.dumps([{"computeMs": 0.25}] * 12))
    there = replace(ENVIRONMENT, backend="tensorrt", device="NVIDIA A100", backend_version="10.3")
    LatencyTable(replace(there, **{field: found}), METHOD, {KEYS[0]: entry()}).save("t.json")
    before = Path("t.json").read_bytes()
    line = refused("import", "times.json", "--from", "trtexec", "--table", "t.json", "--key", KEYS[0], *options)
    assert line.startswith(f"error: times.json was measured with {field} ")
    assert f"but in t.json {field} is {found!r}; give another --table." in line
    assert Path("t.json").read_bytes() == before


def test_published_latencies_by_position_are_a_list_of_their_own():
    Path("rows.csv").write_text("st,end,ker,str,is_dw,time,stdev\n0,1,3,1,False,2.0,0.1\n0,2,5,2,True,0.0,0.1\n")
    text = tables("import", "rows.csv", "--from", "kim23", "--table", "rows.json").stdout
    assert "2 latencies by position in one network; other networks cannot use them" in text
    first, second = json.loads(Path("rows.json").read_text())["rows"]
    assert first == {
        "start": 0, "end": 1, "ms": 2.0, "spread": 0.05, "breaks": None, "kernel": 3, "stride": 1, "depthwise": False,
    }  # fmt: skip
    assert second["spread"] is None
    assert "rows.json holds a list of latencies by position, and a latency table is needed" in refused(
        "show", "rows.json"
    )


@pytest.mark.parametrize("option", ["--key", "--device", "--backend-version", "--precision"])
def test_published_latencies_take_no_option_that_would_be_ignored(option):
    Path("rows.csv").write_text("st,end,time,stdev\n0,1,2.0,0.1\n")
    line = refused("import", "rows.csv", "--from", "kim23", "--table", "rows.json", option, KEYS[0])
    assert f"error: {option} goes only with --from trtexec" in line
    assert not Path("rows.json").exists()


def test_published_latencies_do_not_overwrite_a_table():
    Path("rows.csv").write_text('st,end,time,stdev,breaks\n0,1,2.0,0.1,"0,1"\n')
    write("t.json", {KEYS[0]: entry()})
    before = Path("t.json").read_bytes()
    line = refused("import", "rows.csv", "--from", "kim23", "--table", "t.json")
    assert "t.json holds a latency table, and a list of latencies by position is needed" in line
    assert Path("t.json").read_bytes() == before


def test_an_estimate_is_called_one_everywhere():
    Work(dict.fromkeys(KEYS, ())).save("work.json")
    text = tables("estimate", "work.json", "--device", "a100", "--out", "e.json").stdout
    assert "roofline ESTIMATE, not measured: NVIDIA A100 80GB SXM" in text
    assert "estimate from 19.5 TFLOP/s, 2039 GB/s" in text
    own = in_json("estimate", "work.json", "--device", "mine", "--tflops", "1", "--bandwidth", "100")
    assert own["kind"] == json.loads(Path("e.json").read_text())["kind"] == "roofline estimate"
    assert own["device"]["source"] == "given on the command line"
    for command in (("show", "e.json"), ("check", "e.json"), ("merge", "e.json", "--out", "t.json")):
        assert "e.json holds a roofline estimate, and a latency table is needed" in refused(*command)


def test_a_table_is_not_measured_into_an_estimate():
    Work(dict.fromkeys(KEYS, ())).save("work.json")
    tables("estimate", "work.json", "--device", "t4", "--out", "e.json")
    before = Path("e.json").read_bytes()
    assert "e.json holds a roofline estimate" in refused("run", "work.json", "--table", "e.json", *RUN)
    assert Path("e.json").read_bytes() == before


def test_the_schema_is_printed_as_it_is_published():
    assert tables("schema").stdout == published_schema()


def test_help_names_every_command():
    text = tables("--help").stdout
    for command in ("plan", "run", "merge", "check", "show", "import", "estimate", "schema"):
        assert command in text
