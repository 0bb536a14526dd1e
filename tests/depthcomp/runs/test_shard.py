"""Shards of scores: together they are what one process finds, for every method."""

import json
import re

import pytest
import torch
from tiny_network import EXAMPLE, images, short_chain, tiny_net

from depthcomp import compress_depth
from depthcomp.errors import DepthCompError
from depthcomp.importance.finetuned_importance import FinetunedImportance
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.table import ImportanceTable
from depthcomp.methods.registry import find_method
from depthcomp.preparation import needed_operators
from depthcomp.runs.shard import score_shard
from latency_tables import measure

pytestmark = pytest.mark.whole

QUICK = FinetunedImportance(steps=1, batch_size=4)


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


class _Shared:
    """A complete latency table, and what a user would give."""

    def __init__(self, backend, model=None, method="depthcomp"):
        model, x = model or tiny_net(), images(12)
        with torch.no_grad():
            self.given = {"example_inputs": EXAMPLE, "data": [(x, model(x).argmax(1))], "importance": QUICK}
        self.model = model
        needed = needed_operators(model, EXAMPLE, limits=find_method(method).limits)
        self.table = measure(sorted(needed), backend)


def test_shards_in_one_folder_are_what_one_process_finds(tmp_path, arithmetic_backend):
    shared = _Shared(arithmetic_backend())
    counts = [score_shard(shared.model, f"{i}/2", tmp_path, table=shared.table, **shared.given) for i in (1, 0)]
    lines = (tmp_path / "importance.jsonl").read_text()
    assert lines.count("\n") == sum(counts) > 2
    alone, together = (
        compress_depth(
            shared.model, "80%", table=shared.table, backend=arithmetic_backend(), output_dir=folder, **shared.given
        )
        for folder in (None, tmp_path)
    )
    assert together.importance.losses == alone.importance.losses
    assert together.plan == alone.plan
    assert not (tmp_path / "importance.jsonl").exists()
    assert ImportanceTable.load(tmp_path / "importance.json") == together.importance


class _Counted:
    """A progress that counts the passes of fits over the images, until the search begins."""

    fits, searching = 0, False

    def __call__(self, what, done, total):
        self.searching |= what == "searching"
        self.fits += what.startswith("fitting") and not self.searching


def test_shards_of_fits_leave_nothing_to_fit_and_change_nothing(tmp_path, arithmetic_backend, monkeypatch):
    """Fits that read one tensor stay together, so that each score has the bits that it has alone."""
    monkeypatch.setattr("depthcomp.importance.halving.LEAST_SCORED", 5)  # so that some are passed over
    shared, counted = _Shared(arithmetic_backend()), _Counted()
    given = {**shared.given, "importance": "calibrated"}
    folders = [tmp_path / f"{i}" for i in range(2)]
    counts = [
        score_shard(shared.model, f"{i}/2", folder, table=shared.table, **given) for i, folder in enumerate(folders)
    ]
    assert all(counts)
    together = tmp_path / "together"
    together.mkdir()
    lines = "".join((folder / "importance.jsonl").read_text() for folder in folders)
    (together / "importance.jsonl").write_text(lines)
    assert lines.count("\n") == sum(counts)
    alone, found = (
        compress_depth(
            shared.model, "80%", table=shared.table, backend=arithmetic_backend(), output_dir=folder,
            progress=progress, **given,
        )
        for folder, progress in ((None, None), (together, counted))
    )  # fmt: skip
    assert counted.fits == 0
    assert dict(found.importance.losses) == dict(alone.importance.losses)
    assert found.plan == alone.plan
    assert found.loss == alone.loss
    assert not (together / "importance.jsonl").exists()


def test_a_shard_that_was_interrupted_goes_on(tmp_path, arithmetic_backend):
    shared = _Shared(arithmetic_backend())
    given = {**shared.given, "importance": "calibrated", "table": shared.table}
    with pytest.raises(KilledError):
        score_shard(shared.model, "1/2", tmp_path, progress=killing(5), **given)
    begun = (tmp_path / "importance.jsonl").read_text()
    count = score_shard(shared.model, "1/2", tmp_path, **given)
    assert (tmp_path / "importance.jsonl").read_text().startswith(begun)
    scored = {re.split(" on batch| with refitted", json.loads(line)["entry"])[0] for line in begun.splitlines()}
    assert len(scored) == 5
    assert begun.count("\n") < (tmp_path / "importance.jsonl").read_text().count("\n") == count


def test_a_table_of_scores_has_no_shards(tmp_path):
    with pytest.raises(DepthCompError, match="is a finished table, so shards have nothing to score; give"):
        score_shard(tiny_net(), "0/2", tmp_path, table="table.json", importance=ImportanceTable({}))


@pytest.mark.parametrize(("method", "importance"), [("kim23", "calibrated"), ("layermerge", QUICK)])
def test_shards_of_another_method_leave_nothing_to_score(tmp_path, arithmetic_backend, monkeypatch, method, importance):
    """Shards score the choices of the method, and as the method carries them out: without refits of kept layers."""
    shared = _Shared(arithmetic_backend(), short_chain(), method)
    given = {**shared.given, "importance": importance, "method": method}
    counts = [score_shard(shared.model, f"{i}/2", tmp_path, table=shared.table, **given) for i in range(2)]
    assert sum(counts) > 0
    added = []
    honest = ScoreJournal.add
    monkeypatch.setattr(ScoreJournal, "add", lambda self, *entry: added.append(entry) or honest(self, *entry))

    def losses(folder):
        return compress_depth(
            shared.model, "85%", table=shared.table, backend=arithmetic_backend(), output_dir=folder, **given
        ).importance.losses

    together = losses(tmp_path)
    assert added == []
    assert dict(together) == dict(losses(None))
    assert added


def test_a_method_that_needs_no_losses_has_no_shards(tmp_path):
    with pytest.raises(
        DepthCompError,
        match=r"method \(='uniform'\) needs no losses, so shards .*; give one of depth, depthcomp, depthshrinker",
    ):
        score_shard(tiny_net(), "0/2", tmp_path, table="table.json", method="uniform")
