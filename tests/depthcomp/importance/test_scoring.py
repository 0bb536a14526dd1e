"""Losses by name, from a journal, or from a file: the same numbers, however they were come by."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_network import EXAMPLE, images, tiny_net

from depthcomp import compress_depth
from depthcomp.errors import DepthCompError, TableError
from depthcomp.importance.calibrated_importance import CalibratedImportance
from depthcomp.importance.finetuned_importance import KIM23, FinetunedImportance
from depthcomp.importance.scoring import parse_importance, score_choices
from depthcomp.importance.table import ImportanceTable
from depthcomp.preparation import prepare
from fx_passes import Drop, Fit, Merge

pytestmark = pytest.mark.whole

SAVINGS = defaultdict(lambda: 1.0)
QUICK = FinetunedImportance(steps=1, batch_size=4)


@pytest.fixture(scope="module")
def prepared():
    return prepare(tiny_net(), EXAMPLE, [images(12)], None, seed=0)


@pytest.fixture(scope="module")
def some(prepared):
    return prepared.candidates[::6]


def losses(prepared, candidates, method, **settings):
    return score_choices(prepared, candidates, SAVINGS, method, **settings).losses


class KilledError(Exception):
    pass


def killing(after):
    """A progress that ends the run at the given entry of the scores."""
    seen = []

    def progress(what, done, total):
        if what in ("scoring", "training choices"):
            seen.append(done)
            if len(seen) == after:
                raise KilledError

    return progress


@pytest.mark.parametrize("method", [CalibratedImportance(), QUICK], ids=["calibrated", "finetuned"])
def test_three_interruptions_change_nothing(prepared, some, tmp_path, method):
    whole = losses(prepared, some, method)
    sizes = [0]
    for after in (2, 4, 5):
        with pytest.raises(KilledError):
            losses(prepared, some, method, folder=tmp_path, progress=killing(after))
        sizes.append((tmp_path / "importance.jsonl").stat().st_size)
    assert sizes == sorted(set(sizes))
    assert dict(losses(prepared, some, method, folder=tmp_path)) == dict(whole)


def test_a_kill_between_the_two_losses_of_a_choice_changes_nothing(prepared, some, tmp_path):
    whole = losses(prepared, some, CalibratedImportance(), folder=tmp_path)
    journal = tmp_path / "importance.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]))
    assert dict(losses(prepared, some, CalibratedImportance(), folder=tmp_path)) == dict(whole)
    entries = [json.loads(line)["entry"] for line in journal.read_text().splitlines()]
    assert len(entries) == len(set(entries)) == len(lines)


def test_what_the_scores_depend_on_is_not_mixed_up(prepared, some, tmp_path):
    losses(prepared, some, QUICK, folder=tmp_path)
    first = (tmp_path / "importance.jsonl").read_text()
    losses(prepared, some, QUICK, folder=tmp_path)
    assert (tmp_path / "importance.jsonl").read_text() == first
    data = prepared.calibration
    moved = replace(data, batches=tuple(batch.each(lambda t: t + 1e-6) for batch in data.batches))
    for other, method, seed in [
        (prepared, replace(QUICK, lr=0.02), 0), (prepared, QUICK, 1), (replace(prepared, calibration=moved), QUICK, 0),
    ]:  # fmt: skip
        before = (tmp_path / "importance.jsonl").read_text()
        losses(other, some, method, folder=tmp_path, seed=seed)
        after = (tmp_path / "importance.jsonl").read_text()
        assert after.startswith(before)
        assert after.count("\n") == before.count("\n") + len(some)


def test_a_table_gives_the_losses_that_were_saved(prepared, some, tmp_path):
    found = score_choices(prepared, some, SAVINGS, CalibratedImportance())
    found.table.save(tmp_path / "importance.json")
    table = ImportanceTable.load(tmp_path / "importance.json")
    assert table == ImportanceTable(
        dict(found.losses), "calibrated", {"memory_mib": 1536, "images": None}, found.table.network,
        found.table.data, 0, found.table.seconds, found.table.algorithm, None, found.table.profiting,
    )  # fmt: skip
    assert 0 < len(table.profiting) < len(some)
    again = score_choices(prepared, some, SAVINGS, tmp_path / "importance.json")
    assert dict(again.losses) == dict(found.losses)
    assert again.notes == ()
    assert table.seconds > 0


def test_a_table_of_other_rules_is_said(prepared, some):
    """Scores without refits of readers, or those of an earlier version, rank otherwise."""
    table = score_choices(prepared, some, SAVINGS, CalibratedImportance(), refit_kept=False).table
    assert score_choices(prepared, some, SAVINGS, table, refit_kept=False).notes == ()
    for other in (table, replace(table, algorithm="")):
        (note,) = score_choices(prepared, some, SAVINGS, other).notes
        assert "was scored by other rules" in note
    trained = score_choices(prepared, some, SAVINGS, QUICK).table
    assert all(score_choices(prepared, some, SAVINGS, trained, refit_kept=k).notes == () for k in (True, False))


def test_choices_that_a_table_lacks_are_left_out_and_said(prepared, some):
    half = -(-len(some) // 2)
    losses = {candidate.choice: 0.25 for candidate in some[:half]}
    found = score_choices(prepared, some, SAVINGS, ImportanceTable(losses, network="another"))
    assert dict(found.losses) == losses
    assert found.notes == (
        f"{len(some) - half} of {len(some)} choices were left out, as the importance table lacks them",
        "the importance table was scored on a network with other weights; score the choices anew to be sure",
    )


def test_a_table_of_another_network_is_refused(prepared, some):
    table = ImportanceTable({Drop("here", "there"): 0.25})
    with pytest.raises(TableError, match=r"has 1 choices, but none of the .* of this network"):
        score_choices(prepared, some, SAVINGS, table)
    table = ImportanceTable({some[0].choice: 0.25}, network="another")
    with pytest.raises(TableError, match=r"has 1 choices, but only 1 of the .* of this network"):
        score_choices(prepared, some, SAVINGS, table)


def test_a_class_in_place_of_an_importance_is_refused():
    with pytest.raises(DepthCompError, match=r"\(=CalibratedImportance\) is a class; give an instance of it"):
        parse_importance(CalibratedImportance)


def test_losses_that_are_not_finite_are_left_out_and_said(prepared, some, tmp_path):
    wild = replace(QUICK, lr=1e30, steps=3)
    found = score_choices(prepared, some[:2], SAVINGS, wild)
    assert dict(found.losses) == {}
    assert found.notes == ("2 choices were left out, as their loss is NaN or infinite",)
    found.table.save(tmp_path / "importance.json")
    assert all(map(math.isnan, ImportanceTable.load(tmp_path / "importance.json").losses.values()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(version=3), "has version 3, but this depthcomp reads version"),
        (lambda d: d.update(version=0), "has version 0, but this depthcomp reads version"),
        (lambda d: d.update(version=1), "is no choice of a plan: it must be an object with the field 'kind'"),
        (lambda d: d.pop("seed"), "is no importance table: seed: Field required"),
        (lambda d: d["choices"].append(d["choices"][0]), "twice; remove one entry"),
        (lambda d: d["choices"][0]["choice"].update(kernel=[3, 3, 3]), r"kernel \(=\[3, 3, 3\]\) .* must be two whole"),
        (lambda d: d["choices"][0]["choice"].update(kind="widen"), r"kind \(='widen'\) must be one of drop, fit"),
        (
            lambda d: d["choices"][0]["choice"].update(alpha=1),
            "the 'merge' choice .* has the unknown field 'alpha'",
        ),
        (lambda d: d["choices"][0].update(kernel=[3, 3]), "is no importance table: choices.0.kernel: Extra inputs"),
        (lambda d: d["choices"][0].pop("choice"), "is no importance table: choices.0.choice: Field required"),
        (lambda d: d["choices"][0].update(loss="NaN"), "choices.0.loss: Input should be a valid number"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, change, match):
    path = tmp_path / "importance.json"
    ImportanceTable({Merge("a", "b", (3, 3)): 0.5}).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(TableError, match=match):
        ImportanceTable.load(path)


def first_version():
    """Return an importance.json of version 1, where each choice had all fields, its loss among them."""
    return {
        "kind": "importance table", "version": 1, "method": "finetuned", "settings": {"steps": 7}, "algorithm": "2",
        "network": "n", "data": "d", "seed": 3, "seconds": 2.5,
        "choices": [
            {"entry": "a", "exit": "c", "kind": "merge", "kernel": [3, 5], "end": "none", "pruned": ["b"], "loss": 0.5},
            {"entry": "a", "exit": "b", "kind": "fit", "kernel": [1, 3], "end": "inserted", "pruned": [], "loss": 0.25},
            {"entry": "c", "exit": "d", "kind": "drop", "kernel": None, "end": "original", "pruned": [], "loss": 0},
        ],
    }  # fmt: skip


def test_the_first_version_is_read(tmp_path):
    path = tmp_path / "importance.json"
    path.write_text(json.dumps(first_version()))
    merge, fit, drop = Merge("a", "c", (3, 5), "none", ("b",)), Fit("a", "b", (1, 3), "inserted"), Drop("c", "d")
    found = ImportanceTable.load(path)
    losses = {merge: 0.5, fit: 0.25, drop: 0.0}
    assert found == ImportanceTable(losses, "finetuned", {"steps": 7}, "n", "d", 3, 2.5, "2")
    assert ImportanceTable.load(found.save(path)) == found
    assert json.loads(path.read_text())["version"] == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("choices"), "is no importance table of an earlier version; score the choices anew"),
        (lambda d: d["choices"][0].pop("loss"), "is no importance table of an earlier version"),
        (lambda d: d["choices"].append(d["choices"][0]), "twice; remove one entry"),
        (lambda d: d["choices"][2].update(kernel=[3, 3]), "the 'drop' choice .* has the unknown field 'kernel'"),
        (lambda d: d["choices"][1].update(pruned=["b"]), "the 'fit' choice .* has the unknown field 'pruned'"),
        (lambda d: d["choices"][1].update(kernel=None), "the 'fit' choice .* lacks 'kernel'"),
        (lambda d: d["choices"][0].update(kind="widen"), r"kind \(='widen'\) must be one of drop, fit"),
        (lambda d: d["choices"][0].update(loss="NaN"), "choices.0.loss: Input should be a valid number"),
    ],
)
def test_a_broken_file_of_the_first_version_is_refused(tmp_path, change, match):
    content = first_version()
    change(content)
    (tmp_path / "importance.json").write_text(json.dumps(content))
    with pytest.raises(TableError, match=match):
        ImportanceTable.load(tmp_path / "importance.json")


def test_names_paths_and_settings(tmp_path):
    assert parse_importance("kim23") is KIM23
    assert parse_importance(QUICK) is QUICK
    with pytest.raises(TableError, match=r"cannot read the importance table .*missing.json"):
        parse_importance(tmp_path / "missing.json")
    for wrong in ("best", 3, None):
        with pytest.raises(
            DepthCompError,
            match="must be one of 'calibrated', 'curvature', 'kim23', 'layermerge', an instance of a class that",
        ):
            parse_importance(wrong)


def test_fits_that_memory_cuts_or_has_no_room_for_are_said(prepared):
    fits = [c for c in prepared.candidates if c.choice.kind == "fit"][::4]
    cut = score_choices(prepared, fits, SAVINGS, CalibratedImportance(memory_mib=1))
    assert dict(cut.losses).keys() == {c.choice for c in fits}
    (note,) = cut.notes
    assert "fits solve fewer patterns than their kernels have pixels, as whole kernels need up to" in note
    whole = score_choices(prepared, fits, SAVINGS, CalibratedImportance())
    assert whole.notes == ()
    assert dict(whole.losses) != dict(cut.losses)


def test_a_compression_warns_of_fits_that_memory_cuts_and_refits_them_alike(arithmetic_backend):
    little = CalibratedImportance(memory_mib=1)
    with pytest.warns(UserWarning, match="fits solve fewer patterns than their kernels have pixels"):
        result = compress_depth(
            tiny_net(), "80%", backend=arithmetic_backend(), data=[images(6)], importance=little
        )  # fmt: skip
    assert any("solve fewer patterns" in warning for warning in result.warnings)
    assert result.measured_ms <= result.budget_ms


SCRIPT = """
import sys, torch; from collections import defaultdict; from pathlib import Path
sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)
from tiny_network import EXAMPLE, images, tiny_net
from depthcomp.importance.finetuned_importance import FinetunedImportance
from depthcomp.preparation import prepare
from depthcomp.importance.scoring import score_choices
import os, signal
def progress(what, done, total):
    if what == "training choices" and done == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
p = prepare(tiny_net(), EXAMPLE, [images(12)], None, seed=0)
method = FinetunedImportance(steps=1, batch_size=4)
score_choices(p, p.candidates[::6], defaultdict(lambda: 1.0), method, folder=Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.slow
def test_three_kills_change_nothing(prepared, some, tmp_path):
    for kill_at in (1, 3, 4):
        arguments = [str(Path(__file__).parents[1]), str(tmp_path), str(kill_at)]
        done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env={**os.environ}, check=False)
        assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "importance.jsonl").read_text().count("\n") == 4
    assert dict(losses(prepared, some, QUICK, folder=tmp_path)) == dict(losses(prepared, some, QUICK))
