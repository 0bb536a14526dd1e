import io
import itertools
import re
import sys
from dataclasses import replace

import pytest
from made_result import make_result
from rich.console import Console

from depthcomp.commands.console import Progress, summary
from depthcomp.results.wording import deed, milliseconds, place, verdict
from fx_passes import Drop, Merge, Plan
from latency_tables import Calibration


def printed(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def seconds_of(line):
    return float(line.split()[-2])


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})


def test_summary_says_what_was_gained_and_at_what_cost():
    text = printed(summary(make_result()))
    assert "1.31x as fast" in text
    for row in (
        r"measured latency\W+12\.84 ms\W+9\.80 ms",
        r"samples\W+0\.5 %, n=15\W+0\.6 %, n=15",
        r"predicted latency\W+9\.62 ms",
        r"budget 80%\W+10\.27 ms\W+met, 0\.472 ms to spare",
        r"longest path\W+52\W+43",
        r"on unseen images\W+0\W+0\.287",
        r"spans rewritten\W+1 merged, 1 fitted",
        r"spans refused\W+3",
    ):
        assert re.search(row, text), row


def test_summary_and_words_name_no_nodes():
    result = make_result()
    text = printed(summary(result)) + " ".join(deed(choice) for choice in result.plan)
    places = (*result.plan, *result.refusals)
    assert [name for place in places for name in (place.entry, place.exit) if name in text] == []


def test_summary_tells_how_well_the_predicting_line_fits():
    table = replace(make_result().table, calibration=Calibration(0.1, 0.9, 0.1541, 5))
    result = make_result(table=table)
    assert re.search(r"residual of the predicting line\W+1\.2 % over 5 networks", printed(summary(result)))
    assert make_result().residual is None
    assert "residual" not in printed(summary(make_result()))


def test_summary_of_an_empty_plan():
    assert re.search(r"spans rewritten\W+none", printed(summary(make_result(spans=(), plan=Plan()))))


def test_summary_takes_no_markup_from_the_device():
    result = make_result()
    object.__setattr__(result.environment, "device", "[red]CPU[/red]")
    assert "[red]CPU[/red]" in printed(summary(result))


def test_verdict_on_the_budget_itself_is_met():
    assert verdict(make_result(budget_ms=9.8)) == "met, 0.000 ms to spare"


def test_words():
    assert milliseconds(0.1234) == "0.123 ms"
    assert deed(Merge("a", "b", (3, 5))) == "merged 3x5"
    assert deed(Drop("a", "b")) == "dropped"
    assert place(make_result()).startswith("ONNX Runtime 1.31.0, AMD EPYC")


def test_off_a_terminal_each_finished_stage_is_one_line_on_stderr(capsys):
    with Progress() as progress:
        progress("measuring", 1, 2)
        progress("measuring", 2, 2)
        assert capsys.readouterr().err == ""
        progress("fitting [bold]", 1, 5)
        assert re.fullmatch(r"done     measuring, \d+\.\d s\n", capsys.readouterr().err)
    out, err = capsys.readouterr()
    assert re.fullmatch(r"done     fitting \[bold\], \d+\.\d s\n", err)
    assert out == ""


@pytest.mark.parametrize(("seconds", "told"), [(75.4, "75 s"), (119.4, "119 s"), (347.0, "6 min")])
def test_the_time_of_the_whole_run_is_told_once_it_is_known(capsys, seconds, told):
    with Progress() as progress:
        progress("scoring", 0, 1)
        progress.foretell(seconds)
        progress("scoring", 1, 1)
    assert capsys.readouterr().err.splitlines()[0] == f"about {told} in all"


def test_a_stage_that_fails_is_not_called_done(capsys):
    def fail():
        with Progress() as progress:
            progress("measuring", 1, 2)
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        fail()
    assert capsys.readouterr().err.startswith("stopped  measuring")


def test_without_work_nothing_is_said(capsys):
    with Progress():
        pass
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_running_stage_has_a_bar_and_time_left():
    console = terminal()
    with Progress(console) as progress:
        progress("measuring", 3, 10)
        progress("measuring", 10, 10)
        progress("fitting [bold]", 0, 0)
        progress("fitting [bold]", 2, 2)
    text = console.file.getvalue()
    assert "measuring" in text
    assert "10/10" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert text.index("done     measuring") < text.index("done     fitting [bold]")


def test_a_stage_may_come_again(capsys):
    with Progress() as progress:
        for stage in ("measuring", "solving", "measuring"):
            progress(stage, 1, 1)
    assert capsys.readouterr().err.count("done     measuring") == 2


def test_an_announced_stage_holds_others_and_is_timed_from_its_announcement(capsys, monkeypatch):
    monkeypatch.setattr("depthcomp.commands.console.perf_counter", itertools.count().__next__)
    with Progress() as progress:
        progress("scoring", 0, 1)
        progress("fitting", 1, 2)
        progress("fitting", 2, 2)
        progress("scoring", 1, 1)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("done     fitting, ")
    assert second.startswith("done     scoring, ")
    assert seconds_of(second) > seconds_of(first) > 0


def test_a_long_line_is_not_broken():
    console = Console(file=io.StringIO(), width=20)
    with Progress(console) as progress:
        progress("x" * 60, 1, 1)
    assert console.file.getvalue().count("\n") == 1


def test_stdout_stays_free_for_json_while_a_bar_is_shown():
    stdout = sys.stdout
    with Progress(terminal()) as progress:
        progress("measuring", 1, 2)
        assert sys.stdout is stdout
