"""The comparison of two checkouts, with runs that write their files and compress nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FIT = {"entry": "add", "exit": "add_1", "kind": "fit", "kernel": [3, 3]}
DROP = {"entry": "add_1", "exit": "add_2", "kind": "drop"}
OUTPUTS = np.array([[1.0, -4.0]], np.float32)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import compare_revisions

    monkeypatch.setattr(compare_revisions, "revision", lambda checkout: checkout.name)
    yield compare_revisions
    sys.modules.pop("compare_revisions")


@pytest.fixture
def compare(script, monkeypatch, tmp_path):
    """Compares two checkouts at one budget; `carried_out` lists the runs of both, by folder."""

    def run(after, *, outputs=OUTPUTS, choices=(FIT, DROP)):
        def carry_out(run):
            carried_out.append((run.checkout.name, run.folder.name))
            new = run.checkout.name == "new"
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / "plan.json").write_text(plan(*(choices if new else (FIT, DROP))))
            np.save(run.folder / "outputs.npy", outputs if new else OUTPUTS)

        carried_out.clear()
        monkeypatch.setattr(script.Run, "carry_out", carry_out)
        options = ["--work", str(tmp_path / "work"), "--network", "demo", "--budget", "80%"]
        options += [] if after is None else ["--after", str(tmp_path / after)]
        return script.main(["--before", str(tmp_path / "old"), *options])

    carried_out = run.carried_out = []
    for name in ("old", "new"):
        (tmp_path / name / "depthcomp").mkdir(parents=True)
    return run


def plan(*choices, version=1):
    return json.dumps({"schema_version": version, "choices": choices})


def test_both_versions_of_a_plan_compare(script):
    plain = [{"end": "original", "pruned": [], "kernel": None, **choice} for choice in (FIT, DROP)]
    assert script.choices(plan(*plain)) == script.choices(plan(FIT, DROP, version=2))
    assert script.choices(plan(FIT)) != script.choices(plan({**FIT, "kernel": [1, 1]}))
    assert script.choices(plan(FIT)) != script.choices(plan({**FIT, "end": "inserted"}))


def test_equal_checkouts_pass(compare, capsys):
    assert compare("new") == 0
    assert "1 drop, 1 fit" in capsys.readouterr().out
    assert compare.carried_out == [("old", "fixed"), ("old", "80%"), ("new", "80%")]


def test_the_first_checkout_runs_once(compare):
    assert compare(None) == 0
    assert compare.carried_out == [("old", "fixed"), ("old", "80%")]
    compare("new")
    assert compare.carried_out == [("new", "80%")]


@pytest.mark.parametrize("change", [{"outputs": OUTPUTS + np.float32(1e-5)}, {"choices": (FIT,)}])
def test_a_difference_fails(compare, change):
    assert compare("new", **change) == 1


def test_outputs_that_are_no_numbers_fail(compare):
    assert compare("new", outputs=np.full((1, 2), np.nan)) == 1


def test_another_folder_is_refused(compare, capsys):
    with pytest.raises(SystemExit):
        compare("elsewhere")
    assert "is no checkout of this project" in capsys.readouterr().err
