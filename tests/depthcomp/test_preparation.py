"""What is known of a model and its images before anything is measured."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from depthcomp.data.calibration import calibration_hash, cross_validated, separate
from depthcomp.data.inputs import Inputs
from depthcomp.errors import CaptureError, TableError
from depthcomp.preparation import measurable, prepare

EXAMPLE = torch.zeros(1, 3, 7, 11)


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.MaxPool2d(2)]
    return nn.Sequential(*layers).eval()


def images(count, seed=0):
    return torch.randn(count, 3, 7, 11, generator=torch.Generator().manual_seed(seed))


def in_order(batches):
    """Return the images of batches in an order that does not depend on how they were mixed."""
    together = torch.cat([Inputs.of(batch).held for batch in batches])
    return together[together[:, 0, 0, 0].argsort()]


def judging(prepared):
    return in_order(batch for _, batch in prepared.calibration.judging())


def called(gm, kind):
    modules = [gm.get_submodule(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    return sum(isinstance(module, kind) for module in modules)


def norms(gm):
    return called(gm, nn.BatchNorm2d)


def test_norms_are_folded_in_the_network_and_not_in_the_captured_graph():
    prepared = prepare(net(), None, [images(8)], None, seed=0)
    assert (norms(prepared.captured.gm), norms(prepared.network.gm)) == (1, 0)
    with torch.no_grad():
        wanted, found = prepared.captured.gm(images(8)), prepared.network.gm(images(8))
    assert torch.allclose(wanted, found, atol=1e-5)


def test_candidates_and_refusals():
    prepared = prepare(net(), None, [images(8)], None, seed=0)
    assert prepared.candidates
    refused = {refusal.modules: refusal for refusal in prepared.refusals if "MaxPool2d" in refusal.reason}
    assert refused
    assert all(refusal.at == "4" and refusal.reason == f"4: {refusal.why}" for refusal in refused.values())
    assert all(modules == "4" or modules.endswith(" to 4") for modules in refused)
    assert prepared.notes == ()
    assert prepared.example.held.shape == (1, 3, 7, 11)


def test_a_rewrite_whose_operator_failed_before_is_refused_with_the_reason():
    prepared = prepare(net(), None, [images(8)], None, seed=0)
    (signature,) = prepared.candidates[0].signatures
    failed = signature.key
    left = measurable(prepared, {failed: "its process died", "another operator": "no kernel"})
    assert len(left.candidates) < len(prepared.candidates)
    assert [c for c in left.candidates if signature in c.signatures] == []
    assert len(left.candidates) == sum(signature not in c.signatures for c in prepared.candidates)
    added = left.refusals[len(prepared.refusals) :]
    (reason,) = {refusal.reason for refusal in added}
    assert reason == f"its operator {failed!r} could not be measured for the latency table: its process died"
    assert {refusal.modules for refusal in added} == {"0 to 2"}
    untouched = measurable(prepared, {})
    assert (untouched.candidates, untouched.refusals) == (prepared.candidates, prepared.refusals)


def test_a_network_with_an_operator_that_failed_before_is_refused():
    prepared = prepare(net(), None, [images(8)], None, seed=0)
    kept = next(iter(prepared.pricing.kept.values()))
    with pytest.raises(TableError, match=r"which could not be measured for the latency table: no kernel; try again"):
        measurable(prepared, {kept.key: "no kernel."})


class Branches(nn.Module):
    """Two parallel convolutions with norms, as in training form, in front of another network."""

    def __init__(self, after):
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.one, self.after = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)), after

    def forward(self, x):
        return self.after(torch.relu(self.three(x) + self.one(x)))


def test_free_merges_come_before_everything_else():
    prepared = prepare(Branches(net()), None, [images(8)], None, seed=0)
    (choice,) = prepared.free
    assert choice.kind == "merge"
    graphs = prepared.original, prepared.captured.gm, prepared.network.gm
    assert [called(gm, nn.Conv2d) for gm in graphs] == [4, 3, 3]
    assert [norms(gm) for gm in graphs] == [0, 1, 0]
    with torch.no_grad():
        assert torch.allclose(prepared.original(images(8)), prepared.network.gm(images(8)), atol=1e-5)


def test_a_fit_is_offered_however_large_it_is():
    """What it takes in memory is known where it is solved."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 512, 3), nn.ReLU(), nn.Conv2d(512, 512, 3), nn.ReLU(), nn.Conv2d(512, 5, 3)]
    prepared = prepare(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 7, 9), [images(3)[..., :9]], None, seed=0)
    fits = [slot.operator for c in prepared.candidates if c.choice.kind == "fit" for slot in c.slots]
    assert max(operator.weight[0].numel() for operator in fits) == 512 * 5 * 5


def is_same(found, wanted):
    return (found.folds, found.judges) == (wanted.folds, wanted.judges) and all(
        torch.equal(one.held, other.held) for one, other in zip(found.batches, wanted.batches, strict=True)
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_data_alone_are_cross_validated(seed):
    prepared = prepare(net(), None, [images(30), images(10, seed=1)], None, seed=seed)
    assert is_same(prepared.calibration, cross_validated(torch.cat([images(30), images(10, seed=1)]), seed))
    assert not is_same(prepared.calibration, cross_validated(torch.cat([images(30), images(10, seed=1)]), 9))


def test_all_data_judge_where_there_are_no_others():
    prepared = prepare(net(), None, [images(40)], None, seed=0)
    assert prepared.calibration.judges == (0, 1, 2)
    assert torch.equal(in_order(prepared.calibration.batches), in_order([images(40)]))
    assert torch.equal(judging(prepared), in_order([images(40)]))


@pytest.mark.parametrize("count", [1, 40])
def test_validation_data_alone_judge(count):
    prepared = prepare(net(), None, [images(count)], [images(12, seed=1)], seed=5)
    assert is_same(prepared.calibration, separate(images(count), images(12, seed=1), 5))
    assert torch.equal(judging(prepared), in_order([images(12, seed=1)]))
    assert torch.equal(in_order(prepared.calibration.fold(0)), in_order([images(count)]))
    assert prepared.notes == ()


def test_two_images_judge_each_other():
    prepared = prepare(net(), None, [images(2)], None, seed=0)
    assert prepared.calibration.judges == (0, 1)
    assert prepared.notes == ()


def test_one_image_is_fitted_to_and_judges_and_that_is_said():
    prepared = prepare(net(), None, [images(1)], None, seed=0)
    assert torch.equal(judging(prepared), images(1))
    (note,) = prepared.notes
    assert note == "the loss is estimated on the one image that was also fitted to; pass more images in data="


class OneByOne(nn.Module):
    """Goes through its images one by one, so its graph depends on their number."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return torch.cat([self.body(x[index : index + 1]).flatten(1) for index in range(x.shape[0])])


def test_a_network_for_single_images_is_said():
    prepared = prepare(OneByOne().eval(), EXAMPLE, [images(8)], None, seed=0)
    (note,) = prepared.notes
    assert note.startswith("the network and its compressed form take only batches of one image")
    assert {len(batch) for batch in prepared.calibration.batches} == {1}
    assert prepare(OneByOne().eval(), EXAMPLE, [images(1)], None, seed=0).notes[0].startswith("the loss is")


@pytest.mark.parametrize("val_data", [None, [images(12, seed=1)]])
def test_no_data_are_synthetic_images_and_that_is_said(val_data):
    prepared = prepare(net(), EXAMPLE, None, val_data, seed=0)
    (note,) = prepared.notes
    assert note.startswith("without data the importance is estimated on synthetic images; pass data=")
    assert sum(map(len, prepared.calibration.batches)) == 64 + (12 if val_data else 0)


def test_a_guessed_shape_is_said_first():
    prepared = prepare(net(), None, None, None, seed=0)
    assert prepared.example.held.shape == (1, 3, 224, 224)
    assert [note[:12] for note in prepared.notes] == ["without exam", "without data"]


def test_a_guessed_shape_that_does_not_fit_is_said_to_be_a_guess():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 5 * 9, 2)).eval()
    with pytest.raises(CaptureError, match=r"does not take images of shape \(1, 3, 224, 224\), which were tried"):
        prepare(model, None, None, None, 0)


@pytest.mark.parametrize("own", [None, 3])
def test_a_shuffled_loader_gives_the_images_that_the_seed_draws_and_the_callers_numbers_stay(own):
    def loader(seed):
        generator = None if own is None else torch.Generator().manual_seed(own)
        torch.manual_seed(seed)  # the caller's
        return DataLoader(list(images(20)), batch_size=4, shuffle=True, generator=generator)

    def read(caller, seed):
        data = loader(caller)
        before = torch.get_rng_state()
        prepared = prepare(net(), None, data, loader(caller), seed, most=8)
        assert own is not None or torch.equal(before, torch.get_rng_state())
        return calibration_hash(prepared.calibration), prepared.example.held

    (hashed, example), (again, same) = read(1, 0), read(2, 0)
    assert hashed == again
    assert torch.equal(example, same)
    assert read(1, 1)[0] != hashed
