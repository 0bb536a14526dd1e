"""Refits: every fit sees what the compressed network really has, and no judge's image where one is left out."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from depthcomp.data.calibration import Layout, cross_validated, separate
from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import divergence
from depthcomp.fitting import leaning, ridge
from depthcomp.fitting.candidates import fit_candidates, whole_states
from depthcomp.fitting.execution import Tail
from depthcomp.fitting.memory import FitMemory
from depthcomp.fitting.refit import Refitter
from depthcomp.fitting.ridge import RidgeSystem, design_of, sample_positions, starting_point
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import (
    CapturedNetwork,
    Plan,
    SpanLimits,
    capture,
    enumerate_spans,
    linearize,
    merge,
    solved_without_norm,
)
from fx_passes.affine import from_conv
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.slot_layers import load_operator, operator_at

pytestmark = pytest.mark.whole


class Forked(nn.Module):
    """Three convolutions in a row, a strided one among them, then a block with a projection; class scores."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.long = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, padding=1))
        self.short = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.act, self.head = nn.ReLU(), nn.Linear(8, 7)

    def forward(self, x):
        x = self.act(self.down(self.act(self.two(self.act(self.one(x))))))
        return self.head((self.long(x) + self.short(x)).mean((2, 3)))


def images(count, seed=1, size=12):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Forked().double().eval()
    for convolution in model.modules():
        if isinstance(convolution, nn.Conv2d):
            nn.init.kaiming_normal_(convolution.weight)
    return CapturedNetwork(capture(model, images(1)))


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(enumerate_spans(network, DEFAULT_LIMITS))


@pytest.fixture(scope="module")
def calibration():
    """Three batches of four images, a fold each: few enough for every pixel to be sampled."""
    return cross_validated(images(12), seed=0)


@pytest.fixture(scope="module")
def fits(candidates):
    return [candidate.choice for candidate in candidates if candidate.choice.kind == "fit"]


@pytest.fixture(scope="module")
def in_a_row(fits):
    """A plan of two fits, the second of which reads what the first gives."""
    first = next(choice for choice in fits if choice.entry == "x" and choice.kernel == (3, 3))
    return Plan((first, next(c for c in fits if c.entry == first.exit and c.kernel == (3, 3))))


@pytest.fixture(scope="module")
def forked(fits):
    """A plan of a fit in either branch."""
    return Plan(tuple(next(c for c in reversed(fits) if c.exit.startswith(branch)) for branch in ("long", "short")))


@pytest.fixture
def one_strength(monkeypatch):
    """What a fold judges is then decided."""
    monkeypatch.setattr(leaning, "STRENGTHS", (0.03,))
    monkeypatch.setattr(ridge, "UNJUDGED_STRENGTH", 0.03)


def operators(linearized, plan):
    """Return what the solved convolutions of a linearized graph compute, in order."""
    return [from_conv(conv) for conv in solved_without_norm(linearized, plan).values()]


def slots(network, plan):
    """Return the slots of a plan's choices in the graph's order."""
    found = [slot for choice in plan for slot in kind_of(choice).slots(choice, network.piece(choice))]
    return sorted(found, key=lambda slot: network.order[slot.node])


def same(one, other):
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def largest_difference(one, other):
    pairs = [(getattr(a, p), getattr(b, p)) for a, b in zip(one, other, strict=True) for p in ("weight", "bias")]
    return max(float((a - b).abs().max()) for a, b in pairs)


def value_at(gm, batch, name):
    """Return one node's value by torch.fx's own interpreter."""
    found = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node):
            found[node.name] = super().run_node(node)
            return found[node.name]

    with torch.no_grad():
        Recorder(gm).run(*Inputs.of(batch).tensors)
    return found[name]


def by_hand(network, plan, calibration, unseen=None):
    """Return the operators of a refit in as many whole forwards as it takes."""
    linearized = linearize(network, plan)
    for slot in slots(network, plan):
        shape = slot.operator
        system = RidgeSystem(design_of(slot.entry, shape), shape.kernel, shape.in_channels)
        for fold, batch in zip(calibration.folds, calibration.batches, strict=True):
            entry, target = value_at(linearized, batch, slot.entry), value_at(network.gm, batch, slot.target)
            everywhere = sample_positions(target, target.numel(), torch.Generator())
            system.accumulate(entry, {"y": everywhere.pixels(target)}, everywhere, fold=fold)
        matched = {"y"} if whole_states(network, [slot.target]) else set()
        if unseen is None:
            (found,) = system.solve(["y"], starting_point(shape), judges=calibration.judges, match_variance=matched)
        else:
            ((found,),) = system.solve_without([unseen], ["y"], starting_point(shape), match_variance=matched).values()
        load_operator(GraphFacts(linearized), slot.node, found)
    return operators(linearized, plan)


@pytest.mark.parametrize("unseen", [None, 0, 1, 2])
@pytest.mark.parametrize("name", ["in_a_row", "forked"])
def test_each_fit_maps_what_the_compressed_network_has_to_what_the_original_had(
    network, calibration, request, name, unseen
):
    plan = request.getfixturevalue(name)
    found = operators(Refitter(network, calibration).carry_out(plan, unseen=unseen).linearized, plan)
    assert len(found) == 2
    assert largest_difference(found, by_hand(network, plan, calibration, unseen)) < 1e-8


@pytest.mark.usefixtures("one_strength")
def test_a_lone_refit_is_the_fit_that_was_scored(network, candidates, calibration, fits):
    scored = fit_candidates(network, candidates, calibration, seed=0)
    refitter = Refitter(network, calibration)
    for choice in fits[::7]:
        for fold in calibration.judges:
            found = operators(refitter.carry_out(Plan((choice,)), unseen=fold).linearized, Plan((choice,)))
            assert largest_difference(found, [*scored[choice][fold].values()]) < 1e-8, choice


@pytest.fixture(scope="module")
def other_ends(network):
    """Fits with an activation inserted behind them, or with the original one removed."""
    limits = SpanLimits(layer_pruning=False, skips_pixels=False, kinds=("fit",))
    found = [c for c in Pricing(network).candidates(enumerate_spans(network, limits)) if c.choice.end != "original"]
    assert {c.choice.end for c in found} == {"inserted", "none"}
    return found


def test_another_end_changes_what_follows_a_fit_and_not_the_fit(network, calibration, other_ends):
    refitter, x = Refitter(network, calibration), images(2, seed=9)
    for candidate in other_ends[::3]:
        choice = candidate.choice
        original = refitter.carry_out(Plan((replace(choice, end="original"),)), unseen=1)
        found = refitter.carry_out(Plan((choice,)), unseen=1)
        ((name, operator),) = found.solved.items()
        assert same(operator, original.solved[name]), choice
        computed = operator(value_at(network.gm, x, choice.entry))
        wanted = computed.relu() if choice.end == "inserted" else computed
        assert (computed < 0).any()  # or nobody could tell the ends apart
        assert torch.allclose(value_at(found.linearized, x, choice.exit), wanted, atol=1e-9), choice
        with torch.no_grad():
            merged = merge(found.linearized, Plan((choice,)))(x)
        assert torch.allclose(merged, Tail(network.gm, x).rerun(choice.exit, wanted), atol=1e-9), choice


@pytest.mark.usefixtures("one_strength")
def test_a_lone_refit_with_another_end_is_the_fit_that_was_scored(network, calibration, other_ends):
    scored = fit_candidates(network, other_ends, calibration, seed=0)
    refitter = Refitter(network, calibration)
    for candidate in other_ends[::3]:
        plan = Plan((candidate.choice,))
        for fold in calibration.judges:
            found = operators(refitter.carry_out(plan, unseen=fold).linearized, plan)
            assert largest_difference(found, [*scored[candidate.choice][fold].values()]) < 1e-8, candidate.choice


def test_solved_are_the_operators_that_stand_in_the_graph(network, calibration, in_a_row):
    """Those of new and of kept layers alike."""
    for kept, names in (("none", []), ("nearest", ["head"])):
        refit = Refitter(network, calibration).carry_out(in_a_row, kept=kept)
        graph = GraphFacts(refit.linearized)
        assert list(refit.solved) == [*(slot.node for slot in slots(network, in_a_row)), *names]
        for name, operator in refit.solved.items():
            assert same(operator_at(graph.gm, graph.nodes[name]), operator), name


LITTLE = 0.15  # MiB: 28 unknowns, 4 patterns over 6 channels


@pytest.mark.parametrize("kept", ["none", "nearest", "all"])
@pytest.mark.parametrize("unseen", [None, 1])
def test_plans_share_fits_with_equal_inputs_and_get_the_same_bits(network, calibration, in_a_row, kept, unseen):
    shared, plans = Refitter(network, calibration), [*(Plan((choice,)) for choice in in_a_row), in_a_row]
    for plan in plans:
        found = shared.carry_out(plan, unseen=unseen, kept=kept).solved
        alone = Refitter(network, calibration).carry_out(plan, unseen=unseen, kept=kept).solved
        assert found.keys() == alone.keys()
        assert all(same(operator, alone[name]) for name, operator in found.items())
    if kept == "none":  # the first choice has nothing before it in both of its plans
        assert len(shared._solved) == 3 < sum(len(plan) for plan in plans)


@pytest.mark.usefixtures("one_strength")
def test_a_refit_has_the_memory_and_the_fallback_of_the_fit_that_was_scored(network, candidates, calibration, fits):
    memory = FitMemory(3, LITTLE)
    scored = fit_candidates(network, candidates, calibration, seed=0, memory=memory)
    refitter = Refitter(network, calibration, memory_mib=LITTLE)
    cut = [c.choice for c in candidates if c.choice.kind == "fit" and not memory.is_whole(c.slots[0].operator)]
    assert cut
    assert any(choice not in cut for choice in fits)
    for choice in (*cut[::3], *(choice for choice in fits[::9] if choice not in cut)):
        found = operators(refitter.carry_out(Plan((choice,)), unseen=1).linearized, Plan((choice,)))
        assert largest_difference(found, [*scored[choice][1].values()]) < 1e-8, choice
        kernels = found[0].weight.flatten(2).flatten(0, 1)
        few = int(torch.linalg.matrix_rank(kernels, rtol=1e-9)) < min(kernels.shape)
        assert few is (choice in cut)


def mean_loss(network, changed, batches):
    with torch.no_grad():
        return sum(divergence(network.gm(batch), changed(batch)) for batch in batches) / len(batches)


def test_later_fits_make_up_for_earlier_ones(network, candidates, calibration, in_a_row):
    """What comes out of the last fit is closer to the original's tensor there than it is for fits on their own."""
    scored = fit_candidates(network, candidates, calibration, seed=0)
    exit_ = in_a_row.choices[-1].exit
    for unseen in calibration.judges:
        alone, together = (
            linearize(network, in_a_row),
            Refitter(network, calibration).carry_out(in_a_row, unseen=unseen).linearized,
        )
        for choice in in_a_row:
            for name, operator in scored[choice][unseen].items():
                load_operator(GraphFacts(alone), name, operator)
        seen = Inputs.joined(batch for fold in {0, 1, 2} - {unseen} for batch in calibration.fold(fold))
        wanted, *found = (value_at(gm, seen, exit_) for gm in (network.gm, together, alone))
        assert (found[0] - wanted).square().mean() < 0.95 * (found[1] - wanted).square().mean()


@pytest.mark.usefixtures("one_strength")
@pytest.mark.parametrize("name", ["in_a_row", "forked"])
@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_images_do_not_show_in_a_refit_that_has_not_seen_them(network, calibration, request, unseen, name):
    plan = request.getfixturevalue(name)
    batches = [b.each(lambda t: 3 * t + 1) if fold == unseen else b for fold, b in enumerate(calibration.batches)]
    one, other = Refitter(network, calibration), Refitter(network, replace(calibration, batches=tuple(batches)))
    for fold in calibration.judges:
        pair = [operators(refitter.carry_out(plan, unseen=fold).linearized, plan) for refitter in (one, other)]
        assert (largest_difference(*pair) == 0) is (fold == unseen)
    assert largest_difference(*[operators(refitter.carry_out(plan).linearized, plan) for refitter in (one, other)]) > 0


@pytest.mark.parametrize("count", [2, 13, 30])
def test_the_loss_is_taken_on_each_fold_after_a_refit_without_it(network, in_a_row, count):
    calibration = cross_validated(images(count), seed=0)
    total = 0.0
    for fold in range(min(3, count)):
        changed = merge(Refitter(network, calibration).carry_out(in_a_row, unseen=fold).linearized, in_a_row)
        with torch.no_grad():
            for image in Inputs.joined(calibration.fold(fold)).held.split(1):
                total += divergence(network.gm(image), changed(image))
    assert Refitter(network, calibration).loss(in_a_row) == pytest.approx(total / count, rel=1e-9)


def test_the_loss_is_taken_on_separate_images_alone(network, in_a_row):
    layout = Layout(8, torch.channels_last)
    calibration = separate(images(12), images(11, seed=2), seed=0, layout=layout)
    fitted = replace(calibration, batches=calibration.batches[:2], folds=(0, 0), judges=(), withheld=None)
    refitter = Refitter(network, calibration)
    changed = merge(refitter.carry_out(in_a_row, unseen=1).linearized, in_a_row)
    wanted = mean_loss(network, changed, images(11, seed=2).split(1))
    assert [len(batch) for batch in calibration.batches] == [6, 6, 6, 5]
    assert refitter.loss(in_a_row) == pytest.approx(wanted, rel=1e-9)
    assert refitter.loss(in_a_row) != pytest.approx(Refitter(network, fitted).loss(in_a_row), rel=1e-3)


def test_one_image_judges_what_was_fitted_to_it(network, in_a_row):
    refitter = Refitter(network, cross_validated(images(1), seed=0))
    changed = merge(refitter.carry_out(in_a_row).linearized, in_a_row)
    assert refitter.loss(in_a_row) == pytest.approx(mean_loss(network, changed, [images(1)]), rel=1e-9)


def test_the_loss_of_an_empty_plan_is_nothing(network, calibration):
    assert Refitter(network, calibration).loss(Plan()) == pytest.approx(0.0, abs=1e-12)


def test_what_was_asked_before_does_not_show(network, calibration, in_a_row, forked):
    used = Refitter(network, calibration, seed=3)
    for plan, unseen in [(in_a_row, None), (forked, 1), (in_a_row, 2)]:
        used.carry_out(plan, unseen=unseen)
        used.loss(plan)
    for plan in (in_a_row, forked, Plan((in_a_row.choices[1],))):
        fresh = Refitter(network, calibration, seed=3)
        pair = [operators(refitter.carry_out(plan).linearized, plan) for refitter in (fresh, used)]
        assert largest_difference(*pair) == 0
        assert fresh.loss(plan) == used.loss(plan)


def test_what_is_not_fitted_stays(network, candidates, calibration):
    plan = Plan((next(c.choice for c in candidates if c.choice.kind == "merge"),))
    state, wanted = (
        Refitter(network, calibration).carry_out(plan).linearized.state_dict(),
        linearize(network, plan).state_dict(),
    )
    assert state.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in state.items())


def test_the_network_and_the_images_are_not_changed(network, calibration, in_a_row):
    text, state = str(network.gm.graph), copy.deepcopy(network.gm.state_dict())
    batches = [batch.held.clone() for batch in calibration.batches]
    Refitter(network, calibration).loss(in_a_row)
    assert str(network.gm.graph) == text
    assert all(torch.equal(value, network.gm.state_dict()[name]) for name, value in state.items())
    assert all(torch.equal(kept, batch.held) for kept, batch in zip(batches, calibration.batches, strict=True))


def test_progress_is_reported_to_the_end(network, calibration, in_a_row):
    calls = []
    Refitter(network, calibration).carry_out(in_a_row, progress=lambda *call: calls.append(call))
    assert calls == [("refitting", 1, 2), ("refitting", 2, 2)]


def test_separate_images_are_never_fitted_on(network, in_a_row, one_strength):
    one, other = (
        operators(
            Refitter(network, separate(images(12), images(11, seed=s), seed=0)).carry_out(in_a_row).linearized, in_a_row
        )
        for s in (2, 3)
    )
    assert largest_difference(one, other) == 0


def test_many_judging_images_leave_the_fits_their_pixels(network, in_a_row):
    """As many pixels are sampled from each fitted batch, however many images judge."""
    few, many = (Refitter(network, separate(images(12), images(n, seed=2), seed=0)) for n in (3, 90))
    few.carry_out(in_a_row)
    many.carry_out(in_a_row)
    assert set(few._pixels) == set(many._pixels)
