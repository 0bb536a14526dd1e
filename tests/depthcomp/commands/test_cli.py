import json
import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import click
import pytest
from made_result import make_result
from PIL import Image
from typer.testing import CliRunner

from depthcomp.commands.backend_help import BACKENDS
from depthcomp.commands.main import app
from depthcomp.compress import NOT_SAVED
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.finetune import FinetuneRecord
from latency_tables.backends import BACKEND_NAMES

pytestmark = pytest.mark.whole

SPEC = "some_cli_nets:net"
MODULE = """
    from torch import nn

    def net():
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
        model.pretrained_cfg = {"input_size": (3, 7, 11)}
        return model
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Stand in for the compression; the calls that it gets are returned."""
    seen = []

    def compress_depth(model, budget, *, output_dir, progress, **arguments):
        seen.append({"model": model, "budget": budget, "output_dir": output_dir, **arguments})
        progress("measuring", 1, 1)
        print("chatter of a library")
        warnings.warn("synthetic images\nwere used", stacklevel=2)
        warnings.warn("an old way", DeprecationWarning, stacklevel=2)
        if output_dir is not None:
            output_dir.mkdir(exist_ok=True)
            (output_dir / "plan.json").write_text("{}")
            (output_dir / "journal.lock").touch()
        return make_result()

    (tmp_path / "some_cli_nets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("depthcomp.compress_depth", compress_depth)
    yield seen
    sys.modules.pop("some_cli_nets", None)


def fail_with(monkeypatch, error):
    def compress_depth(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("depthcomp.compress_depth", compress_depth)


def run(*arguments):
    return CliRunner().invoke(app, ["compress", *arguments])


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"depthcomp \d+\.\d+\.\d+\n", result.stdout)


def test_a_mistyped_budget_is_refused_before_torch_is_loaded():
    code = "import sys; sys.argv = ['depthcomp', 'compress', 'timm:resnet18', '--budget', '70']; import runpy\n" + (
        "try: runpy.run_module('depthcomp', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)\n"
    )  # fmt: skip
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "budget (='70') has no known unit" in found.stderr
    assert found.stdout == "False\n"


def test_a_file_name_is_no_module(calls):
    result = run("some_cli_nets.py:net", "--budget", "80%")
    assert result.exit_code == 2
    assert "so write some_cli_nets:..." in result.stderr.replace("\n", " ")


def test_what_is_not_saved_fails(calls, monkeypatch):
    unsaved = replace(make_result(), warnings=(f"{NOT_SAVED}, and is returned: no space",))
    monkeypatch.setattr("depthcomp.compress_depth", lambda *_, **__: unsaved)
    result = run(SPEC, "--budget", "80%", "--out", "out")
    assert result.exit_code == 1
    assert "1.31x as fast" in result.stdout


def test_what_the_user_sees(calls):
    result = run(SPEC, "--budget", "80%")
    assert result.exit_code == 0
    assert "1.31x as fast" in result.stdout
    assert "wrote" not in result.stdout
    assert "chatter" not in result.stdout
    assert "done     measuring" in result.stderr
    assert "warning: synthetic images were used\n" in result.stderr
    assert "an old way" not in result.output
    (call,) = calls
    assert str(call["budget"]) == "80%"
    assert call["example_inputs"].shape == (1, 3, 7, 11)
    assert call["backend"].name == "onnxruntime"
    assert (call["data"], call["val_data"], call["table"], call["output_dir"]) == (None, None, None, None)
    assert (call["backend"].threads, call["seed"], call["finetune"]) == (1, 0, None)


def test_options_arrive(calls, tmp_path):
    for name in ("images", "held_out"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "x.png")
    options = "--data images --val-data held_out --backend onnxruntime --threads 2 --table t.json --seed 5"
    options += " --importance kim23 --module body --exclude head --exclude body.*"
    assert run(SPEC, "--budget", "1.4x", *options.split()).exit_code == 0
    (call,) = calls
    assert [batch.shape for batch in (*call["data"], *call["val_data"])] == [(1, 3, 7, 11)] * 2
    assert (call["backend"].threads, call["seed"], str(call["table"])) == (2, 5, "t.json")
    assert (call["importance"], call["module"]) == ("kim23", "body")
    assert call["exclude"] == ["head", "body.*"]


def test_fine_tuning_in_the_same_call(calls, tmp_path):
    for name in ("images", "held_out"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "x.png")
    chosen = FinetuneConfig(epochs=7, batch_size=5, seed=3)
    (tmp_path / "tuning.json").write_text(chosen.to_json())
    common = [SPEC, "--budget", "80%", "--data", "images", "--val-data", "held_out", "--seed", "9"]
    for options, wanted in (
        (["--finetune-epochs", "2", "--workers", "1"], FinetuneConfig(epochs=2, seed=9, workers=1)),
        (["--finetune", "tuning.json"], chosen),
        (["--finetune", "tuning.json", "--finetune-epochs", "2"], replace(chosen, epochs=2)),
    ):
        assert run(*common, *options).exit_code == 0
        call = calls.pop()
        assert call["finetune"] == wanted
        for data in (call["data"], call["val_data"]):
            assert len(data) == 1  # a Dataset: the configuration says how it is batched
            assert data[0].shape == (3, 7, 11)


@pytest.mark.usefixtures("calls")
def test_the_files_written_are_listed_and_older_ones_are_not(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("older")
    result = run(SPEC, "--budget", "80%", "--out", "out")
    assert re.findall(r"^wrote (.*)$", result.stdout, re.MULTILINE) == ["out/plan.json"]


@pytest.mark.usefixtures("calls")
def test_json_is_all_of_stdout():
    result = run(SPEC, "--budget", "80%", "--out", "out", "--json")
    content = json.loads(result.stdout)
    assert content["files"] == ["out/plan.json"]
    assert content["budget"]["text"] == "80%"
    assert content["original"]["ms"] == 12.84


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SPEC, "--budget", "70"], "budget (='70') has no known unit; write"),
        (
            ["timm:mobilnetv2_050", "--budget", "70%"],
            "model timm:mobilnetv2_050 is unknown to timm; did you mean",
        ),
        (
            [SPEC, "--budget", "70%", "--weights", "none.pt"],
            "the weights file none.pt does not exist; check the",
        ),
        ([SPEC, "--budget", "70%", "--data", "none"], "the image folder none does not exist; give a folder"),
        (
            [SPEC, "--budget", "70%", "--val-data", "none"],
            "the image folder none does not exist; give a folder",
        ),
        (
            [SPEC, "--budget", "70%", "--table", "none/t.json"],
            "cannot write the latency table none/t.json: its folder does not exist;",
        ),
        ([SPEC, "--budget", "70%", "--table", "."], "cannot write the latency table .: it is a folder; add"),
        ([SPEC, "--budget", "70%", "--backend", "abacus"], "backend 'abacus' is unknown; choose one of"),
        ([SPEC, "--budget", "70%", "--threads", "0"], "threads (=0) must be at least 1."),
        ([SPEC, "--budget", "70%", "--finetune-epochs", "0"], "epochs (=0) of FinetuneConfig must be a whole number"),
        ([SPEC, "--budget", "70%", "--finetune", "none.json"], "cannot read the configuration none.json: No such"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_code_2(calls, arguments, message):
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    assert calls == []


@pytest.mark.usefixtures("calls")
def test_an_error_of_the_compression_is_one_line(monkeypatch):
    fail_with(monkeypatch, BudgetInfeasibleError("no plan meets 1ms;\n2.5 ms is the best", best_ms=2.5))
    result = run(SPEC, "--budget", "1ms")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no plan meets 1ms; 2.5 ms is the best\n"


@pytest.mark.usefixtures("calls")
def test_ctrl_c_exits_as_shells_expect(monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run(SPEC, "--budget", "80%")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    result = run(SPEC, "--budget", "80%", "--out", "out")
    said = "interrupted; the same command resumes from out\n"
    assert (result.exit_code, result.stderr) == (130, said)


@pytest.mark.usefixtures("calls")
def test_a_bug_keeps_its_traceback(monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("a bug"))
    assert isinstance(run(SPEC, "--budget", "80%").exception, ZeroDivisionError)


@pytest.mark.parametrize("command", [["compress"], ["bench"], ["tables", "run"]])
def test_help_names_every_backend(command):
    text = click.unstyle(CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).stdout)
    words = re.findall(r"[\w.:]+", text)
    assert [name for name in BACKEND_NAMES if name not in [word.rstrip(".") for word in words]] == []
    assert BACKENDS not in text


def test_the_command_line_starts_without_the_tables():
    program = "import sys, depthcomp.commands.main; print({'latency_tables', 'numpy', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_help_names_the_command_and_its_options():
    runner = CliRunner()
    assert "compress" in runner.invoke(app, ["--help"]).stdout
    text = click.unstyle(runner.invoke(app, ["compress", "--help"], env={"COLUMNS": "120"}).stdout)
    for option in ("--budget", "--weights", "--val-data", "--json"):
        assert option in text


def test_the_module_itself_loads_no_heavy_library():
    code = (
        "import sys; before = set(sys.modules); import depthcomp; base = set(sys.modules);"
        "import depthcomp.commands.main; new = set(sys.modules) - base;"
        "sys.exit(bool(new & {'torch', 'timm', 'onnxruntime', 'matplotlib', 'PIL', 'rich.progress'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def tunings(tmp_path, monkeypatch):
    """Stand in for the fine-tuning of a folder; the requests that it gets are returned."""
    seen = []

    def run(request, progress):
        seen.append(request)
        progress("fine-tuning", 1, 1)
        print("chatter of a library")
        (request.out or request.directory).mkdir(exist_ok=True)
        ((request.out or request.directory) / "model.json").write_text("{}")
        return make_result(finetuned=FinetuneRecord("epoch 2", "loss", 0.5, 0.25, -0.5, -0.25, 3, 9, 12.0))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("depthcomp.commands.finetune.run", run)
    return seen


def tune(*arguments):
    return CliRunner().invoke(app, ["finetune", "out", "--data", "photos", *arguments], env={"COLUMNS": "160"})


def test_fine_tuning_prints_what_a_compression_prints(tunings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("older")
    result = tune("--epochs", "3")
    assert result.exit_code == 0, result.output
    for said in ("1.31x as fast", "validation loss before and after fine-tuning", "best: epoch 2; 3 epochs"):
        assert said in result.stdout
    assert re.findall(r"^wrote (.*)$", result.stdout, re.MULTILINE) == ["out/model.json"]
    assert "chatter" not in result.stdout
    assert tunings[0].config == FinetuneConfig(epochs=3)
    content = json.loads(tune("--out", "other", "--json").stdout)
    assert content["files"] == ["other/model.json"]
    assert content["finetuned"]["loss_after"] == 0.25


def test_of_several_processes_one_speaks(tunings, monkeypatch):
    monkeypatch.setattr("depthcomp.commands.finetune.run", lambda request, progress: None)
    assert tune().stdout == ""


def test_what_images_are_normalised_with_can_be_given(tunings):
    for given, wanted in (
        ([], {}),
        (["--mean", "0.286", "--std", "0.353"], {"mean": (0.286,), "std": (0.353,)}),
        (["--mean", "0,1,2", "--std", "1,2,3"], {"mean": (0.0, 1.0, 2.0), "std": (1.0, 2.0, 3.0)}),
    ):
        assert tune(*given).exit_code == 0
        assert tunings.pop().statistics == wanted
    for given in (["--mean", "0.2"], ["--mean", "a", "--std", "1"], ["--mean", "1,2", "--std", "1"]):
        result = tune(*given)
        assert result.exit_code == 2
        assert "must both be a number for each channel, for example 0.485,0.456,0.406" in " ".join(
            result.stderr.split()
        )
