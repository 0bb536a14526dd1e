"""A kind of choice that the product knows nothing of goes through every step, from this file alone.

It keeps the last convolution of a chain and puts one fitted convolution in the place of all layers before it.
"""

import copy
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_network import images
from torch import nn

import depthcomp
from depthcomp import compress_depth
from depthcomp.data.calibration import cross_validated
from depthcomp.errors import PlanError
from depthcomp.fitting.candidates import fit_candidates, replacement
from depthcomp.fitting.execution import Tail
from depthcomp.importance.calibrated import calibrated
from depthcomp.latency.pricing import Pricing
from depthcomp.methods.method import Method
from depthcomp.methods.registry import METHODS
from depthcomp.methods.registry import register as register_method
from depthcomp.results.loading import load_result
from dp_solver import solve
from fx_passes import (
    CapturedNetwork,
    Plan,
    Slot,
    SpanChoice,
    SpanLimits,
    capture,
    fold_batch_norms,
    linearize,
    merge,
    random_plan,
)
from fx_passes.affine import crop_kernel
from fx_passes.body import BodyBuilder
from fx_passes.collapse import collapse
from fx_passes.insertion import insert_convolution
from fx_passes.kinds import Kind, decode_choice, encode_choice, kind_of, register, registry
from fx_passes.kinds.fields import parse_kernel, parse_node, read_choice

pytestmark = pytest.mark.whole

NAME = "keep_last"


@dataclass(frozen=True, slots=True)
class KeepLast(SpanChoice):
    kind: ClassVar[str] = NAME
    kernel: tuple[int, int]


class KeepLastKind(Kind[KeepLast]):
    choice = KeepLast
    precedence = 90
    done = "shortened"
    explanation = "one convolution stands before the last layer"

    def enumerate(self, piece, limits):
        choice = KeepLast(piece.entry, piece.exit, (3, 3))
        if not self.check(choice, piece):
            yield choice

    def check(self, choice, piece):
        if not isinstance(piece.graph.layer(piece.pre_activation), nn.Conv2d):
            return "it does not end with a convolution"
        source = self._source(piece)
        if source not in piece.nodes or piece.layers < 3:
            return "too few layers stand before its last one"
        full = self._before(piece).kernel
        return "" if min(full) >= 3 else "its layers read too few pixels"

    def refusal(self, piece, limits):
        return self.check(KeepLast(piece.entry, piece.exit, (3, 3)), piece)

    def body(self, choice, piece):
        builder, nodes = BodyBuilder(piece.entry, piece.in_shape), piece.graph.nodes
        first = builder.convolution(builder.entry, crop_kernel(self._before(piece), choice.kernel), self._source(piece))
        kept = nodes[piece.pre_activation]
        last = builder.layer(first, kept, shaped_like=kept)
        return builder.build(last, at=piece.pre_activation)

    def slots(self, choice, piece):
        source = self._source(piece)
        return (Slot(source, piece.entry, source, crop_kernel(self._before(piece), choice.kernel)),)

    def linearize(self, copied, choice, piece, *, exact_border):
        source, entry = copied.nodes[self._source(piece)], copied.nodes[piece.entry]
        operator = crop_kernel(self._before(piece, device="cpu"), choice.kernel)
        insert_convolution(copied.gm, source, entry, operator, f"shortened_{source.name}")

    def merge(self, linearized, choice):
        assert choice.exit in linearized.nodes

    def decode(self, fields):
        return read_choice(KeepLast, fields, {"entry": parse_node, "exit": parse_node, "kernel": parse_kernel})

    def _source(self, piece):
        return piece.graph.nodes[piece.pre_activation].all_input_nodes[0].name

    def _before(self, piece, device="meta"):
        """Return the collapse of the layers before the last one."""
        nodes, source = piece.graph.nodes, self._source(piece)
        inner = [nodes[name] for name in piece.inner if name != piece.pre_activation]
        return collapse(piece.graph.gm, nodes[piece.entry], inner, piece.in_shape[1], device=device)[nodes[source]]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
        patch.setattr(METHODS, "_known", {name: METHODS[name] for name in METHODS})
        register(KeepLastKind)
        limits = SpanLimits(layer_pruning=False, other_ends=(), kinds=(NAME,))
        register_method(Method("made up", "keeps last layers", limits, fits=True))
        yield


def chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def network():
    gm = capture(chain(), images(1))
    fold_batch_norms(gm)
    return CapturedNetwork(gm)


@pytest.fixture(scope="module")
def candidates(network):
    return Pricing(network).candidates(network.spans(SpanLimits(kinds=(NAME,))))


@pytest.fixture(scope="module")
def whole(candidates):
    """The candidate from the images to the last convolution."""
    return max(candidates, key=lambda candidate: len(candidate.span.nodes))


def one_ms(signature):
    return 1.0


def test_it_is_enumerated_beside_the_others(network, candidates):
    assert [candidate.choice.kind for candidate in candidates] == [NAME] * len(candidates)
    assert candidates
    everything = {choice.kind for span in network.spans(SpanLimits()) for choice in span.choices}
    assert everything == {"merge", "fit", "drop", "narrow", NAME}


def test_it_is_priced_by_its_two_operators(network, whole):
    new, kept = whole.signatures
    assert (new.kernel, new.in_channels, new.out_channels, new.activation) == ((3, 3), 3, 8, None)
    assert kept == Pricing(network).kept[whole.piece.pre_activation]
    assert kept.activation == "relu"
    pricing = Pricing(network)
    assert pricing.saving_ms(whole, one_ms) == pytest.approx(len(set(whole.span.nodes) & set(pricing.kept)) - 2)


def test_it_is_scored_by_running_its_body(network, whole):
    calibration = cross_validated(images(12), seed=0)
    (weights,) = fit_candidates(network, [whole], calibration).values()
    tail = Tail(network.gm, images(4, seed=3))
    place, tensor = replacement(whole, weights[0], tail)
    (slot,), (operator,) = whole.slots, weights[0].values()
    by_hand = network.gm.get_submodule(network.nodes[place].target)(operator(tail.value(slot.entry)))
    assert torch.allclose(tensor, by_hand, atol=1e-5)
    losses = calibrated(network, [whole], calibration, {whole.choice: 1.0}).losses
    assert 0 < losses[whole.choice] < 10


def test_it_is_solved_for_like_the_others(network, candidates, whole):
    pricing = Pricing(network)
    losses = {candidate.choice: 0.1 for candidate in candidates}
    total = pricing.kept_ms(pricing.kept, one_ms)
    answer = solve(pricing.problem(network.tree, candidates, losses, one_ms), total - 1)
    assert [key for key in answer.keys if key] == [whole.choice]


def test_linearized_and_merged_it_computes_the_same(network, whole):
    plan = Plan((whole.choice,))
    linearized = linearize(network, plan)
    x = images(3, seed=5)
    with torch.no_grad():
        assert torch.allclose(merge(linearized, plan)(x), linearized(x), atol=1e-5)
    convolutions = [m for m in linearized.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len([m for m in network.gm.modules() if isinstance(m, nn.Conv2d)]) - 2


def test_an_impossible_choice_is_refused_with_the_reason_of_the_kind(network):
    with pytest.raises(PlanError, match="cannot be shortened, as too few layers stand before its last one"):
        linearize(network, Plan((KeepLast("_1", "_4", (3, 3)),)))


def test_a_refused_span_says_the_reason_of_the_kind_and_of_no_other(network):
    refusals = [span.refusal for span in network.spans(SpanLimits(kinds=(NAME,))) if span.refusal]
    assert "0 to 1: cannot be shortened, as too few layers stand before its last one" in refusals
    assert not any("as it is one" in refusal or "cannot be dropped" in refusal for refusal in refusals)


def test_random_plans_draw_it(network):
    import numpy

    kinds = {choice.kind for seed in range(20) for choice in random_plan(network, numpy.random.default_rng(seed))}
    assert NAME in kinds


def test_its_codec_serves_plans(whole):
    assert decode_choice(json.loads(json.dumps(encode_choice(whole.choice)))) == whole.choice
    plan = Plan((whole.choice,))
    assert Plan.from_json(plan.to_json()) == plan
    assert kind_of(whole.choice).describe(whole.choice) == "shortened"


@pytest.fixture(scope="module")
def compressed(arithmetic_backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up") / "out"
    result = compress_depth(
        chain(), "85%", data=[images()], backend=arithmetic_backend(), output_dir=folder, method="made up"
    )
    return result, folder


def test_a_compression_chooses_refits_and_measures_it(compressed):
    result, _ = compressed
    assert {choice.kind for choice in result.plan} == {NAME}
    assert result.measured_ms <= result.budget_ms
    before, x = copy.deepcopy(result.trainable).eval(), images(3, seed=5)
    with torch.no_grad():
        assert torch.allclose(result.model(x), before(x), atol=1e-5)


def test_saved_it_loads_again(compressed):
    result, folder = compressed
    found, x = load_result(folder), images(3, seed=5)
    assert found.plan == result.plan
    assert [record.choice for record in found.spans] == [record.choice for record in result.spans]
    assert found.importance.losses.keys() == result.importance.losses.keys()
    with torch.no_grad():
        assert torch.equal(depthcomp.load(folder)(x), result.model(x))


def test_the_report_tells_it_by_the_users_modules(compressed):
    result, folder = compressed
    page = (folder / "report.html").read_text()
    assert "<td>shortened</td>" in page
    assert all(f"<code>{record.modules}</code>" in page for record in result.spans)
