"""Fits of narrow spans: the channels that stay are those needed most, and the layers that read them make up for it."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from depthcomp.data.calibration import cross_validated
from depthcomp.fitting.candidates import fit_candidates
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.joint import JointLosses
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.refit import Refitter
from depthcomp.importance.candidate_scorer import JudgingBatch
from depthcomp.importance.true_loss import TrueLoss
from depthcomp.latency.pricing import Pricing
from fx_passes import CapturedNetwork, Plan, SpanLimits, capture, fold_batch_norms, merge
from fx_passes.norm_statistics import norm_statistics

ONLY = SpanLimits(kinds=("narrow",))
SAME = 1e-9  # of the largest value, in float64
CHANGED = {"mul", "relu_4", "relu_5", "relu_6"}  # tensors with copied or dead channels


def images(count=60, seed=1):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """An inverted residual with a gate, a grouped layer, linear layers of each pixel, and a hidden linear layer."""

    def __init__(self):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24)
        self.deep, self.back = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.up, self.grouped, self.down = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 3, groups=4), nn.Conv2d(32, 6, 3)
        self.between = nn.BatchNorm2d(32)
        self.pixels, self.out = nn.Linear(6, 24), nn.Linear(24, 6)
        self.hidden, self.scores = nn.Linear(6 * 8 * 8, 24), nn.Linear(24, 5)

    def forward(self, x):
        y = torch.relu(self.deep(torch.relu(self.norm(self.wide(x)))))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        z = torch.relu(self.between(self.grouped(torch.relu(self.up(self.back(y))))))
        z = self.out(torch.relu(self.pixels(self.down(z).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.scores(torch.relu(self.hidden(z.flatten(1))))


def network(change=None):
    torch.manual_seed(0)
    net = Net().double().eval()
    with torch.no_grad():
        if change is not None:
            change(net)
    gm = capture(net, images(2))
    statistics = norm_statistics(gm)
    fold_batch_norms(gm)
    return CapturedNetwork(gm, statistics)


def doubled(net):
    """Let the last half of all inner channels be copies of the first."""
    for maker in (net.wide, net.deep, net.excite, net.up, net.grouped, net.pixels, net.hidden):
        half = len(maker.weight) // 2
        maker.weight[half:], maker.bias[half:] = maker.weight[:half], maker.bias[:half]


def dead(net):
    """Let the last third of all inner channels be zero behind their activations."""
    for maker in (net.wide, net.deep, net.up, net.grouped, net.pixels, net.hidden):
        start = len(maker.weight) * 2 // 3 // 8 * 8
        maker.weight[start:], maker.bias[start:] = 0, -1


def candidates_of(captured, tensors=1):
    found = Pricing(captured).candidates(captured.spans(ONLY))
    return [candidate for candidate in found if len(candidate.choice.widths) == tensors]


@pytest.fixture(scope="module")
def calibration():
    return cross_validated(images(), seed=0)


@pytest.mark.parametrize(("change", "share"), [(doubled, 1 / 2), (dead, 2 / 3)])
def test_copies_and_dead_channels_are_lost_without_a_loss(change, share, calibration):
    captured, x = network(change), images(8, seed=5)
    refitter = Refitter(captured, calibration)
    chosen = [
        candidate
        for candidate in candidates_of(captured)
        for (tensor, count) in candidate.choice.widths
        if tensor in CHANGED and count / captured.channels.width(tensor) >= share
    ]
    assert {name for candidate in chosen for name, _ in candidate.choice.widths} == CHANGED
    with torch.no_grad():
        wanted = captured.gm(x)
        for candidate in chosen:
            refit = refitter.carry_out(Plan((candidate.choice,)))
            found = merge(refit.linearized, refit.plan)(x)
            assert float((found - wanted).abs().max() / wanted.abs().max()) < SAME, candidate.choice


def test_a_row_of_copies_is_lost_without_a_loss(calibration):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 6, 1)]
    with torch.no_grad():
        for layer in layers[:2]:
            layer.weight[16:], layer.bias[16:] = layer.weight[:16], layer.bias[:16]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double().eval()
    captured, x = CapturedNetwork(capture(net, images(2))), images(8, seed=5)
    chosen = [c for c in candidates_of(captured, 2) if min(count for _, count in c.choice.widths) >= 16]
    assert len(chosen) == 2
    for candidate in chosen:
        refit = Refitter(captured, calibration).carry_out(Plan((candidate.choice,)))
        with torch.no_grad():
            found, wanted = merge(refit.linearized, refit.plan)(x), captured.gm(x)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < SAME


def test_the_fits_of_one_row_are_not_taken_for_those_of_another(calibration):
    """The last layer of a row has one shape for several widths of the tensors before."""
    captured = network()
    (row, *_) = candidates_of(captured, 2)
    (first, size), last = row.choice.widths
    plans = [Plan((replace(row.choice, widths=((first, size - lost), last)),)) for lost in (0, 8)]
    shared = Refitter(captured, calibration)
    for plan in plans:
        found, wanted = (refitter.carry_out(plan).solved for refitter in (shared, Refitter(captured, calibration)))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].weight, wanted[name].weight) for name in wanted)


def test_fewer_channels_are_among_more(calibration):
    captured = network()
    orders = ChannelOrders(captured, calibration)
    for unseen in (None, *calibration.judges):
        for tensor, size in (("mul", 24), ("relu_5", 24), ("relu_6", 24)):
            kept = [orders.kept(tensor, count, unseen) for count in range(1, size + 1)]
            assert [len(each) for each in kept] == list(range(1, size + 1))
            assert all(set(few) < set(more) for few, more in itertools.pairwise(kept))


def test_whole_groups_stay(calibration):
    orders = ChannelOrders(network(), calibration)
    kept = orders.kept("relu_4", 16, None)
    assert len({number // 8 for number in kept}) == 2
    assert len(kept) == 16


def test_what_was_not_seen_decides_nothing(calibration):
    fold = calibration.judges[1]
    batches = [
        batch.each(lambda images: torch.randn_like(images) * 3) if own == fold else batch
        for batch, own in zip(calibration.batches, calibration.folds, strict=True)
    ]
    captured, both = network(), (calibration, replace(calibration, batches=tuple(batches)))
    one, other = (ChannelOrders(captured, data) for data in both)
    weights = [
        fit_candidates(captured, candidates_of(captured)[::3], data, channels=orders)
        for data, orders in zip(both, (one, other), strict=True)
    ]
    for choice in weights[0]:
        ((tensor, count),) = choice.widths
        assert one.kept(tensor, count, fold) == other.kept(tensor, count, fold)
        for name, operator in weights[0][choice][fold].items():
            kept = operator.weight.abs().sum((0, 2, 3)) > 0
            assert torch.equal(kept, weights[1][choice][fold][name].weight.abs().sum((0, 2, 3)) > 0)


def test_a_score_is_that_of_the_narrow_network(calibration):
    """The full network with zero weights in its place, and the narrow network, are the same function."""
    captured, (fold, batch) = network(), next(calibration.judging())
    some = [*candidates_of(captured)[::3], *candidates_of(captured, 2)[::3]]
    assert {len(candidate.choice.widths) for candidate in some} == {1, 2}
    channels = ChannelOrders(captured, calibration)
    weights = fit_candidates(captured, some, calibration, channels=channels)
    judge = TrueLoss(captured, JudgingBatch("one", fold, batch, None))
    joint = JointLosses(captured, some, calibration, profiting=frozenset(), channels=channels)
    for candidate in some:
        found = judge.loss(candidate, weights[candidate.choice][fold], {})
        assert found >= 0
        joint._judging = {fold: [(batch, batch.through(captured.gm), None)]}
        assert joint.loss(Plan((candidate.choice,)), refitted=False) == pytest.approx(found, rel=1e-7, abs=1e-12)


def test_more_channels_lose_less(calibration):
    captured = network()
    refitter, losses = Refitter(captured, calibration), {}
    for candidate in candidates_of(captured):
        ((tensor, count),) = candidate.choice.widths
        losses.setdefault(tensor, {})[count] = refitter.loss(Plan((candidate.choice,)))
    assert len(losses) >= 3
    for by_width in losses.values():
        ordered = [by_width[count] for count in sorted(by_width)]
        assert ordered == sorted(ordered, reverse=True)


def test_memory_that_is_too_little_leaves_weights_as_they_are(calibration):
    captured = network()
    some, channels = candidates_of(captured), ChannelOrders(captured, calibration)
    little = FitMemory(calibration.count, mib=1e-3)
    weights = fit_candidates(captured, some, calibration, memory=little, channels=channels)
    orders = ChannelOrders(captured, calibration, memory=little)
    power = captured.gm.get_submodule("scores").weight.square().sum(0)
    assert orders.kept("relu_6", 16, None) == tuple(sorted(power.argsort(descending=True)[:16].tolist()))
    assert len(little.fitting(some)[0]) == len(some)
    large = [(c.choice, slot) for c in some for slot in c.slots if not little.is_whole(slot.operator)]
    assert large
    for choice, slot in large:
        for fold, operators in weights[choice].items():
            kept = channels.left(slot.entry, slot.widths, fold)
            assert torch.equal(operators[slot.node].weight, slot.operator.weight * kept[:, None, None])


def test_fits_do_not_depend_on_others_that_read_the_same_tensor(calibration):
    """A fit in the place of a span may read what a narrowed layer reads, and restore a tensor of another size."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 1),
        nn.ReLU(), nn.Conv2d(24, 4, 1),
    ).double().eval()  # fmt: skip
    gm = capture(net, images(2))
    statistics = norm_statistics(gm)
    fold_batch_norms(gm)
    captured = CapturedNetwork(gm, statistics)
    candidates = Pricing(captured).candidates(captured.spans(SpanLimits()))
    read = captured.nodes["_3"].all_input_nodes[0].name
    narrow = [c for c in candidates if c.choice.kind == "narrow" and any(slot.entry == read for slot in c.slots)]
    beside = [c for c in candidates if any(slot.entry == read and slot.target != "_3" for slot in c.slots)]
    assert narrow
    assert beside
    alone, together = (fit_candidates(captured, some, calibration) for some in (narrow, [*narrow, *beside]))
    for candidate in narrow:
        for fold, weights in alone[candidate.choice].items():
            for node, operator in weights.items():
                assert torch.equal(operator.weight, together[candidate.choice][fold][node].weight)
