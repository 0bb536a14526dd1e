"""The papers' protocol: each entry trained alone, by its own seed, and what the scores make of it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny_network import EXAMPLE, images, tiny_net
from torch import nn

from depthcomp.data.inputs import Inputs
from depthcomp.errors import DepthCompError
from depthcomp.importance.finetuned_importance import KIM23, LAYERMERGE, FinetunedImportance
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.trained import entries_of, finetuned, layers_of, losses_of
from depthcomp.preparation import prepare

SHORT = FinetunedImportance(steps=2, batch_size=4)


@pytest.fixture(scope="module")
def prepared():
    model, x = tiny_net(), images(12)
    with torch.no_grad():
        return prepare(model, EXAMPLE, [(x, model(x).argmax(1))], None, seed=0)


@pytest.fixture(scope="module")
def few(prepared):
    """A merge, a fit and a drop."""
    return [next(c for c in prepared.candidates if c.choice.kind == kind) for kind in ("merge", "fit", "drop")]


def scored(prepared, candidates, config, journal=None, **settings):
    journal = ScoreJournal() if journal is None else journal
    finetuned(prepared.captured, candidates, prepared.calibration, config, journal, seed=0, **settings)
    return dict(journal.scores)


def test_an_entry_does_not_depend_on_the_others(prepared, few):
    together = scored(prepared, few, SHORT)
    assert together.keys() == {str(candidate.choice) for candidate in few}
    for candidate in reversed(few):
        alone = scored(prepared, [candidate], SHORT)
        assert alone[str(candidate.choice)] == together[str(candidate.choice)]


def test_shards_add_up_and_resume_bitwise(prepared, few, tmp_path):
    config = replace(KIM23, steps=2, batch_size=4)
    names = sorted(entries_of(prepared.captured, few, config))
    whole = scored(prepared, few, config)
    for shard in (1, 0):
        scored(prepared, few, config, ScoreJournal(tmp_path / "j.jsonl", "run"), entries=names[shard::2])
    journal = ScoreJournal(tmp_path / "j.jsonl", "run")
    assert journal.scores.keys() == whole.keys()
    lines = (tmp_path / "j.jsonl").read_bytes()
    assert scored(prepared, few, config, journal) == whole
    assert (tmp_path / "j.jsonl").read_bytes() == lines  # nothing was trained again


def test_neither_the_network_nor_the_users_random_numbers_change(prepared, few):
    before, state = copy.deepcopy(prepared.captured.gm.state_dict()), torch.get_rng_state()
    scored(prepared, few, replace(LAYERMERGE, steps=1, batch_size=4))
    assert all(torch.equal(before[name], value) for name, value in prepared.captured.gm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not prepared.captured.gm.training


def test_without_a_rate_a_change_is_what_the_choice_alone_does(prepared, few):
    """Nothing is learnt, but norms see the images; so the network has none here."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval(), images(12)
    with torch.no_grad():
        plain = prepare(model, EXAMPLE, [(x, model(x).argmax(1))], None, seed=0)
    config = replace(SHORT, lr=0.0)
    drop = next(c for c in plain.candidates if c.choice.kind == "drop")
    ((name, network),) = entries_of(plain.captured, [drop], config).items()
    judging = Inputs.joined(plain.calibration.fold(plain.calibration.judges[0])).held
    with torch.no_grad():
        agreed = (network()(judging).argmax(1) == plain.network.gm(judging).argmax(1)).double().mean()
    assert scored(plain, [drop], config)[name] == pytest.approx(float(agreed) - 1)


def colours(count):
    """Return images of one bright channel each, and which one it is."""
    x, labels = 0.5 * images(count).abs(), torch.arange(count) % 3
    x[range(count), labels] += 1.0
    return x, labels


def test_training_helps():
    """A layer that was drawn anew recovers with steps, on labels and on the original's outputs alike."""
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    for conv in convs:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    named = prepare(model, EXAMPLE, [colours(24)], None, seed=0)
    merge = next(c for c in named.candidates if c.choice.kind == "merge")
    name = next(entry for entry in entries_of(named.captured, [merge], KIM23) if entry.startswith("layer "))
    for labels in (named.calibration.labels, None):
        assert labels is None or len(torch.cat(labels)) == 24
        untrained, trained = (
            scored(replace(named, calibration=replace(named.calibration, labels=labels)), [merge], config)[name]
            for config in (replace(KIM23, steps=60, batch_size=8, lr=lr) for lr in (0.0, 0.05))
        )
        assert untrained < -0.3
        assert trained > -0.1


def test_the_scores_by_hand(prepared, few):
    candidate = max(few, key=lambda c: len(layers_of(prepared.captured, c)))
    layers = layers_of(prepared.captured, candidate)
    assert len(layers) >= 2
    changes = {str(candidate.choice): -0.25} | {f"layer {name}": -0.125 * n for n, name in enumerate(layers)}
    total, mean = sum(changes.values()) + 0.25, (sum(changes.values()) + 0.25) / len(layers)
    plain, normalized, exponential = (
        losses_of(prepared.captured, [candidate], config, changes)[candidate.choice]
        for config in (SHORT, replace(KIM23, alpha=1.5), LAYERMERGE)
    )
    assert plain == 0.25
    assert normalized == pytest.approx((total - 1.5 * mean * len(layers)) - (-0.25 - 1.5 * mean))
    wanted = sum(math.exp(changes[f"layer {name}"]) for name in layers) - math.exp(-0.25)
    assert exponential == pytest.approx(wanted)
    others = changes | {"layer of a choice that is not offered": -5.0}
    assert losses_of(prepared.captured, [candidate], replace(KIM23, alpha=1.5), others)[candidate.choice] == normalized


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_images_and_norms_of_one_pixel(count):
    """One image of one pixel tells a norm no statistics."""
    torch.manual_seed(0)
    narrow = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *narrow, nn.Flatten(), nn.Linear(6, 4))
    found = prepare(model.eval(), EXAMPLE, [images(count)], None, seed=0)
    assert all(map(math.isfinite, scored(found, found.candidates[:2], SHORT).values()))


def test_what_is_not_finite_makes_no_loss(prepared, few):
    wild = replace(SHORT, lr=1e30, steps=3)
    changes = scored(prepared, few[1:2], wild)
    assert all(map(math.isnan, changes.values()))
    assert all(map(math.isnan, losses_of(prepared.captured, few[1:2], wild, changes).values()))


def test_layers_are_the_convolutions_of_the_span_each_once(prepared):
    network = prepared.network
    convolutions = {name for name in network.nodes if isinstance(network.layer(name), nn.Conv2d)}
    for candidate in prepared.candidates:
        wanted = [name for name in candidate.span.nodes if name in convolutions]
        assert layers_of(prepared.captured, candidate) == wanted


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("steps", 0, r"steps \(=0\) of an importance must be a whole number of at least 1"),
        ("lr", math.nan, r"lr \(=nan\) of an importance must be a finite number of at least 0"),
        ("score", "best", r"score \(='best'\) of an importance must be one of change, normalized, exponential"),
    ],
)
def test_malformed_settings(field, value, match):
    with pytest.raises(DepthCompError, match=match):
        FinetunedImportance(**{field: value})


def test_the_presets_differ_in_their_score():
    assert (PRESETS["kim23"].score, PRESETS["layermerge"].score) == ("normalized", "exponential")
