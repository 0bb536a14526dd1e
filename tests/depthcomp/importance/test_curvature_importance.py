"""Losses by curvature: they rank choices as true losses do, and true losses stand in where no gradient is."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp.data.inputs import Inputs
from depthcomp.errors import DepthCompError
from depthcomp.fitting.memory import FitMemory
from depthcomp.importance import contenders, fitted_candidates
from depthcomp.importance import curvature as module
from depthcomp.importance.calibrated import calibrated
from depthcomp.importance.curvature import CurvatureJudges
from depthcomp.importance.curvature_importance import CurvatureImportance
from depthcomp.importance.fitted_candidates import FittedCandidates
from depthcomp.importance.scoring import score_choices, scoring_context
from depthcomp.importance.table import ImportanceTable
from depthcomp.importance.true_loss import TrueLoss, judging_batches
from depthcomp.preparation import prepare
from depthcomp.progress import silent
from latency_tables.fleet.work import Shard

pytestmark = pytest.mark.whole

SAVINGS = defaultdict(lambda: 1.0)
MANY = CurvatureImportance(draws=16)


class Maps(nn.Module):
    """A stem, a body, and a dense map of three channels; or the map alone, cut off from all gradients."""

    def __init__(self, detached=False):
        super().__init__()
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
        self.body, self.head, self.detached = nn.Sequential(*layers), nn.Conv2d(6, 3, 1), detached

    def forward(self, x):
        x = self.head(self.body(x))
        return x.detach() if self.detached else {"map": x, "classes": x.argmax(1)}


def prepared_for(model, data):
    return prepare(model.eval(), EXAMPLE, data, None, seed=0)


@pytest.fixture(scope="module")
def prepared():
    return prepared_for(tiny_net(), [images(24)])


@pytest.fixture(scope="module")
def labelled():
    model, x = tiny_net(), images(24)
    with torch.no_grad():
        classes = model(x).argmax(1)
    classes[::3] = (classes[::3] + 1) % 5
    return prepared_for(model, [(x, classes)])


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return prepared_for(Maps(), [images(24)])


def cheapest_of(candidates):
    """Return a frontier that holds, of each span, the choice of least loss."""

    def on_frontier(losses):
        found = {}
        for candidate in candidates:
            loss, place = losses.get(candidate.choice, math.inf), (candidate.choice.entry, candidate.choice.exit)
            if loss < found.get(place, (math.inf, None))[0]:
                found[place] = loss, candidate.choice
        return {choice for _, choice in found.values()}

    return on_frontier


def true_losses(prepared, candidates):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcomp.importance.halving.LEAST_SCORED", len(candidates))
        return calibrated(prepared.network, candidates, prepared.calibration, SAVINGS).losses


@pytest.mark.parametrize("which", ["prepared", "dense"])
def test_they_rank_choices_as_true_losses_do(which, request, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 8)
    some = (known := request.getfixturevalue(which)).candidates[::3]
    found, true = score_choices(known, some, SAVINGS, MANY), true_losses(known, some)
    pairs = [found.losses[c.choice] for c in some], [true[c.choice] for c in some]
    assert spearmanr(*pairs).statistic > 0.9
    assert found.table.check.choices == 8 < len(some)
    assert found.table.check.rank_correlation > 0.8
    assert 0.5 < found.table.check.median_ratio < 2
    assert found.notes == ()


@pytest.mark.parametrize("which", ["prepared", "labelled", "dense"])
@pytest.mark.parametrize("refitted", [False, True])
def test_a_judge_finds_nearly_the_true_loss_of_each_choice(which, refitted, request):
    known = request.getfixturevalue(which)
    some, (batch, *_) = known.candidates[::2], judging_batches(known.calibration)
    fitted = FittedCandidates(
        known.network, known.calibration, seed=0, report=silent, memory=FitMemory(3), refit_kept=refitted
    )
    fitted.fit(some, [batch.fold])
    judges = TrueLoss(known.network, batch), CurvatureJudges(known.network, some, 200, 0).on(batch)
    changes = [(c, fitted.weights(c.choice, batch.fold), fitted.consumers(c.choice, batch.fold)) for c in some]
    assert any(consumers for *_, consumers in changes) == refitted
    true, found = ([judge.loss(*change) for change in changes] for judge in judges)
    assert spearmanr(true, found).statistic > (0.8 if refitted else 0.95)
    assert np.median(np.divide(found, true)) == pytest.approx(1, rel=0.4)


def test_a_table_keeps_its_check(dense, tmp_path):
    table = score_choices(dense, dense.candidates[::9], SAVINGS, CurvatureImportance()).table
    assert table.check is not None
    assert ImportanceTable.load(table.save(tmp_path / "importance.json")) == table


def test_where_no_gradient_reaches_true_losses_stand_in_and_that_is_said():
    torch.manual_seed(0)
    blind = prepared_for(Maps(detached=True), [images(12)])
    some = blind.candidates[::6]
    found = score_choices(blind, some, SAVINGS, CurvatureImportance())
    assert all(math.isfinite(loss) for loss in found.losses.values())
    (note,) = found.notes
    assert note.startswith(f"{len(some)} choices were scored by true losses, as no finite gradient leads from the")
    assert "body" in note
    assert found.table.check is None


def test_parts_of_batches_stay_within_the_memory_and_hold_every_image(prepared, labelled):
    for known in (prepared, labelled):
        batches = judging_batches(known.calibration)
        judges = CurvatureJudges(known.network, known.candidates, 4, 0)
        whole, parts = judges.within(batches, 1536), judges.within(batches, 1)
        assert [len(part.images) for part in whole] == [len(batch.images) for batch in batches]
        assert len(whole) < len(parts) == len({part.name for part in parts})
        assert torch.equal(*(Inputs.joined(each.images for each in several).held for several in (parts, batches)))
        labels = [[p.labels for p in several] for several in (parts, batches)]
        assert labels[0][0] is None or torch.equal(*map(torch.cat, labels))


def test_parts_estimate_what_whole_batches_do(dense):
    some, importance = dense.candidates[::7], CurvatureImportance(draws=32)
    whole = score_choices(dense, some, SAVINGS, importance).losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MIB", 2**10)
        parts = score_choices(dense, some, SAVINGS, importance).losses
    for choice, loss in whole.items():
        assert parts[choice] == pytest.approx(loss, rel=0.3)


def test_an_unfinished_run_goes_on_and_ends_the_same(prepared, tmp_path):
    some = prepared.candidates[::8]
    whole = score_choices(prepared, some, SAVINGS, CurvatureImportance(), folder=tmp_path)
    journal = tmp_path / "importance.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]))
    again = score_choices(prepared, some, SAVINGS, CurvatureImportance(), folder=tmp_path)
    assert dict(again.losses) == dict(whole.losses)
    assert again.table.check == whole.table.check
    assert journal.read_text().count("\n") == len(lines)


def test_shards_find_the_bits_of_one_process(prepared, tmp_path, monkeypatch):
    for name, value in (("CHEAP", 0), ("LAYERS", 1), ("LEAST_SHARE", 1.0)):
        monkeypatch.setattr(contenders, name, value)
    some, importance = prepared.candidates, CurvatureImportance()
    on_frontier = cheapest_of(some)
    alone = score_choices(prepared, some, SAVINGS, importance, on_frontier=on_frontier)
    assert len(alone.losses) < len(some)
    context = scoring_context(prepared, some, SAVINGS, importance, on_frontier=on_frontier, folder=tmp_path)
    counts = [importance.score_part(context, Shard(index, 2)) for index in (1, 0)]
    assert (tmp_path / "importance.jsonl").read_text().count("\n") == sum(counts)
    shared = (tmp_path / "importance.jsonl").read_text().splitlines()
    together = score_choices(prepared, some, SAVINGS, importance, on_frontier=on_frontier, folder=tmp_path)
    assert dict(together.losses) == dict(alone.losses)
    assert together.table.check == alone.table.check
    entries = [line.split('"entry":')[1] for line in (tmp_path / "importance.jsonl").read_text().splitlines()]
    assert len(shared) < len(entries) == len(set(entries))


def test_choices_on_the_frontier_have_true_losses_and_the_others_corrected_estimates(prepared, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 9)
    some = prepared.candidates[::2]
    found = score_choices(prepared, some, SAVINGS, CurvatureImportance(), on_frontier=cheapest_of(some))
    best = cheapest_of(some)(found.losses)
    monkeypatch.setattr(module, "CHECKED", len(some))
    true = score_choices(prepared, [c for c in some if c.choice in best], SAVINGS, CurvatureImportance())
    assert found.table.check.choices < len(found.losses)
    assert {choice: found.losses[choice] for choice in best} == {choice: true.losses[choice] for choice in best}


def test_weights_beyond_the_memory_are_freed_and_nothing_changes(prepared, monkeypatch):
    some, left, used = prepared.candidates[::2], [], []
    keep, fit = FittedCandidates.keep, FittedCandidates.fit

    def counted(fitted, choices):
        before = len(fitted._weights)
        keep(fitted, choices)
        assert not fitted.exceeds_memory
        left.append((before, len(fitted._weights)))

    def fitted_within(fitted, candidates, folds, bare):
        fit(fitted, candidates, folds, bare)
        used.append(sum(map(fitted._bytes, fitted._weights)) / fitted._limit)
        assert len(candidates) == 1 or used[-1] <= 2  # what is kept, and one part

    monkeypatch.setattr(module, "CHECKED", 2)
    monkeypatch.setattr(contenders, "LAYERS", 1)
    whole = score_choices(prepared, some, SAVINGS, CurvatureImportance(), on_frontier=cheapest_of(some)).losses
    monkeypatch.setattr(FittedCandidates, "keep", counted)
    monkeypatch.setattr(FittedCandidates, "fit", fitted_within)
    monkeypatch.setattr(fitted_candidates, "_MIB", 16)
    found = score_choices(prepared, some, SAVINGS, CurvatureImportance(), on_frontier=cheapest_of(some)).losses
    assert max(used) > 1
    assert all(after < before for before, after in left)
    assert any(after for _, after in left)
    assert dict(found) == dict(whole)


@pytest.mark.parametrize("count", [3, 9, 30, 1000])
def test_the_checked_choices_are_spread_over_all_exits(prepared, monkeypatch, count):
    monkeypatch.setattr(module, "CHECKED", count)
    some = prepared.candidates[::2]
    estimates = {c.choice: float(number * 7 % len(some)) for number, c in enumerate(some)}
    estimates[some[0].choice] = math.nan
    chosen = module._spread([c.choice for c in some], estimates)
    exits = {c.choice.exit for c in some[1:]}
    assert len(chosen) == len(set(chosen)) <= count
    assert len({choice.exit for choice in chosen}) == min(count, len(exits))
    assert some[0].choice not in chosen
    if count >= len(exits):
        assert {choice.exit for choice in chosen} == exits
    if count >= len(some):
        assert set(chosen) == {c.choice for c in some[1:]}


def test_of_each_exit_the_median_choice_is_checked_first():
    assert module._from_the_middle("abcde") == ["c", "d", "b", "e", "a"]
    assert module._from_the_middle("ab") == ["b", "a"]
    assert module._from_the_middle("") == []


def test_another_seed_and_other_draws_are_other_scores(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 2)
    some = prepared.candidates[::12]
    one, seed, draws = (
        score_choices(prepared, some, SAVINGS, importance, seed=number, folder=tmp_path).losses
        for importance, number in ((CurvatureImportance(), 0), (CurvatureImportance(), 1), (MANY, 0))
    )
    assert dict(one) != dict(seed)
    assert dict(one) != dict(draws)


@pytest.mark.parametrize("name", ["draws", "memory_mib", "images"])
def test_counts_are_checked(name):
    with pytest.raises(DepthCompError, match=rf"{name} \(=0\) of an importance must be a whole number of at least 1"):
        CurvatureImportance(**{name: 0})


def test_random_images_refit_no_consumer(prepared, tmp_path):
    calls = []
    score_choices(
        prepared, prepared.candidates[::10], SAVINGS, CurvatureImportance(draws=1),
        refit_kept=False, folder=tmp_path, progress=lambda what, *_: calls.append(what.split(",")[0]),
    )  # fmt: skip
    assert {"estimating losses", "verifying losses"} <= set(calls)
    assert "refitting consumers" not in calls
    assert "refitted" not in (tmp_path / "importance.jsonl").read_text()
