"""Preparation before any measurement: the captured network, its images, and its candidate rewrites."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from depthcomp.data.batches import Data
from depthcomp.data.calibration import CalibrationSet
from depthcomp.data.calibration_images import calibration_of
from depthcomp.data.example import ExampleInputs, infer_example
from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import DEFAULT_LOSS, OutputLoss
from depthcomp.data.randomness import entered, own_randomness
from depthcomp.errors import CaptureError, TableError
from depthcomp.latency.pricing import Candidate, Pricing
from depthcomp.sources.module_names import Modules, matched_modules
from depthcomp.sources.part_of_whole import PartOfWhole
from fx_passes import (
    CapturedNetwork,
    Plan,
    Span,
    SpanLimits,
    capture,
    collapse_spans,
    enumerate_spans,
    fold_batch_norms,
    free_merges,
    linearize,
)
from fx_passes.examples import Examples
from fx_passes.exclusion import exclude as mark_excluded
from fx_passes.graph_part import GraphPart, find_part
from fx_passes.kinds import kinds
from fx_passes.module_paths import module_path
from fx_passes.norm_statistics import norm_statistics
from fx_passes.normalise.modules import cloned_layers
from fx_passes.output_nodes import add_floats_behind, is_output
from fx_passes.preconditions import as_tensors, require_capturable
from latency_tables import OperatorSignature

__all__ = ["DEFAULT_LIMITS", "Prepared", "Refusal", "measurable", "needed_operators", "prepare"]

DEFAULT_LIMITS = SpanLimits(layer_pruning=False, other_ends=(), skips_pixels=False)
"""Limits of the default choices: a fit replaces layer pruning, and its target is the original end."""
_FLOATS_BEHIND = "the network returns no real values, so it is judged by those that its outputs are computed from"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A span that cannot be compressed.

    Attributes:
        entry: node whose tensor the span reads.
        exit: node whose tensor the span produces.
        modules: the user's modules that the span covers, in words.
        why: the reason, as a sentence.
        at: the one module that the reason is about; empty where it is about the whole span.
    """

    entry: str
    exit: str
    modules: str
    why: str
    at: str = ""

    @property
    def reason(self) -> str:
        """The reason with the module that it is about."""
        return f"{self.at}: {self.why}" if self.at else self.why


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model, ready to be measured and compressed.

    Where only a part of the model is compressed, the budget is the part's, and the loss the whole model's.

    Attributes:
        original: the canonical graph of what is measured, its norms folded, as runtimes run it.
        original_pricing: the signatures of the original's operators.
        free: the free merges, which change only the latency.
        captured: the canonical graph of the model after the free merges.
        network: `captured` with its norms folded.
        example: the example inputs of what is measured; latency is measured at their shapes.
        calibration: the images to fit and to judge on.
        pricing: the signatures of the operators of `network`.
        candidates: the rewrites that can be tried.
        refusals: the spans that cannot be rewritten, or only in some ways.
        notes: notes for the user.
        judged_by: what the loss is, in words.
        excluded: paths of the modules that stay as they are.
        part: the part of the model that is compressed; None for all of it.
    """

    original: fx.GraphModule
    original_pricing: Pricing
    free: Plan
    captured: CapturedNetwork
    network: CapturedNetwork
    example: Inputs
    calibration: CalibrationSet
    pricing: Pricing
    candidates: list[Candidate]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    judged_by: str
    excluded: tuple[str, ...] = ()
    part: GraphPart | None = None

    def measured(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Cut a graph made from `captured` or `network` to the part that is compressed; return a whole one as it is."""
        return gm if self.part is None else self.part.of(gm)

    @property
    def teacher(self) -> fx.GraphModule:
        """The network for fine-tuning to learn from, which returns what the original returns."""
        return _folded(self.captured.gm) if self.calibration.loss.behind else self.network.gm


def prepare(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    data: Data | None,
    val_data: Data | None,
    seed: int,
    *,
    most: int | None = None,
    limits: SpanLimits = DEFAULT_LIMITS,
    loss: OutputLoss = DEFAULT_LOSS,
    inputs: Sequence[str] | None = None,
    exclude: Modules = (),
    part: str = "",
) -> Prepared:
    """Prepare a model for measurement and compression; the model is not changed.

    Args:
        model: the model.
        example_inputs: a batch of images, or of several inputs; None to take one from the data or guess.
        data: calibration images.
        val_data: images to judge on; None to let parts of the calibration images judge in turn.
        seed: seed of the images' order, for a shuffled loader too.
        most: most images to read from each source; None to choose by their size.
        limits: limits of the candidates' choices.
        loss: what the user says about the loss of outputs.
        inputs: the names of the forward's arguments that example and data give; None to tell them by its signature.
        exclude: names or patterns of modules that stay as they are.
        part: path of the one module to compress; empty for the whole model.

    Raises:
        CaptureError: the model or its example inputs are unusable, `exclude` names no part of the model, or the graph
            of `part` cannot be found in the model's.
        DataError: the data are empty or do not fit the model.
    """
    require_capturable(model)  # before its data are read
    excluded, names = matched_modules(model, exclude, "exclude"), InputNames.of(model, example_inputs, inputs)
    with own_randomness(torch.device("cpu")), entered(data, seed, 0):
        example, data, guess = infer_example(model, example_inputs, data, names)
    scope, (original, free, captured) = _networks(model, names.given(example), guess, excluded, part)
    judged = _folded(captured.gm)
    behind = add_floats_behind(judged)
    network = CapturedNetwork(judged, norm_statistics(captured.gm))
    calibration, judged_by, notes = calibration_of(
        network.gm, example, data, val_data, seed, most=most, loss=replace(loss, behind=behind), names=names
    )
    inside = None if scope is None else scope.names(network.gm)
    pricing = Pricing(network, inside)
    candidates, refusals = _rewrites(network, pricing, limits)
    if scope is not None and inside is not None:
        refusals = tuple(refusal for refusal in refusals if refusal.exit in inside)
        read = PartOfWhole(model, part).read(names.given(example))
        original, example = CapturedNetwork(scope.of(original.gm)), Inputs.of(read)
        judged_by = f"{judged_by}, of the whole {type(model).__name__}"
    return Prepared(
        original.gm, Pricing(original), free, captured, network, example, calibration, pricing, candidates,
        refusals, judged_by=judged_by, excluded=excluded, part=scope,
        notes=tuple(filter(None, (guess, _FLOATS_BEHIND if behind else "", _unshared(captured.gm), *notes))),
    )  # fmt: skip


def _unshared(gm: fx.GraphModule) -> str:
    """Return a note on weights that calls no longer share; empty where there are none."""
    layers = cloned_layers(gm)
    if not layers:
        return ""
    more = f" and {len(layers) - 1} more layers are" if len(layers) > 1 else " is"
    return (
        f"{layers[0]}{more} called several times, and not on tensors of one shape that could be one batch; in the "
        "result each call has weights of its own"
    )


def measurable(prepared: Prepared, failures: Mapping[str, str]) -> Prepared:
    """Return `prepared` with a refusal for each rewrite to an operator that failed before.

    Args:
        prepared: the prepared model; it is not changed.
        failures: reasons why operators could not be measured, by key. They are not tried again, as an operator may have
            killed its process.

    Raises:
        TableError: the network itself has an operator that failed.
    """
    for signature in sorted({*prepared.original_pricing.kept.values(), *prepared.pricing.kept.values()}):
        if signature.key in failures:
            raise TableError(
                f"the network has the operator {signature.key!r}, which could not be measured for the latency table: "
                f"{failures[signature.key].rstrip('.')}; try again with `depthcomp tables run --retry-failed`, or give "
                "another table"
            )
    kept, refused = [], []
    for candidate in prepared.candidates:
        failed = [signature.key for signature in candidate.signatures if signature.key in failures]
        if failed:
            reason = f"its operator {failed[0]!r} could not be measured for the latency table: {failures[failed[0]]}"
            span = candidate.span
            refused.append(Refusal(span.entry, span.exit, prepared.network.words(span.nodes), reason))
        else:
            kept.append(candidate)
    return replace(prepared, candidates=kept, refusals=(*prepared.refusals, *refused))


def needed_operators(
    model: nn.Module, example: Tensor | Examples, *, limits: SpanLimits = DEFAULT_LIMITS
) -> dict[OperatorSignature, list[str]]:
    """Return every operator that a compression of `model` measures, with its places.

    No data are needed and nothing is measured; the model is not changed. A place is the name of a layer, or a rewrite
    that contains the operator.

    Args:
        model: the model.
        example: a batch of images (n, c, h, w), or of several inputs; latency will be measured at its shape.
        limits: limits of the rewrites' choices.

    Raises:
        CaptureError: the model or its example input is unusable.
    """
    require_capturable(model)
    _, (original, _, captured) = _networks(model, example)
    network = CapturedNetwork(_folded(captured.gm))
    pricing = Pricing(network)
    places: dict[OperatorSignature, set[str]] = {}
    for built, prices in ((original, Pricing(original)), (network, pricing)):
        for name, signature in prices.kept.items():
            places.setdefault(signature, set()).add(module_path(built.nodes[name]))
    for candidate in _rewrites(network, pricing, limits)[0]:
        for signature in candidate.signatures:
            places.setdefault(signature, set()).add(f"{candidate.choice.kind} {network.words(candidate.span.nodes)}")
    return {signature: sorted(places[signature]) for signature in sorted(places)}


def _networks(
    model: nn.Module, example: Tensor | Examples, guess: str = "", excluded: Sequence[str] = (), part: str = ""
) -> tuple[GraphPart | None, tuple[CapturedNetwork, Plan, CapturedNetwork]]:
    """Return the part to compress, if any, the network as runtimes run it, the free merges, and the network after them.

    Raises:
        CaptureError: the model or its example is unusable, or its forward does not run an excluded module.
    """
    captured = CapturedNetwork(_captured(model, example, guess))
    idle = sorted(set(excluded) - mark_excluded(captured.gm, excluded))
    if idle:
        raise CaptureError(
            f"exclude names {idle[0]}, which computes nothing in the forward of {type(model).__name__}; leave it out"
        )
    scope = _part_of(captured.gm, model, part, example) if part else None
    original, free = CapturedNetwork(_folded(captured.gm)), free_merges(captured)
    return scope, (original, free, CapturedNetwork(collapse_spans(linearize(captured, free), free)))


def _part_of(captured: fx.GraphModule, model: nn.Module, path: str, example: Tensor | Examples) -> GraphPart:
    """Return the part of a captured graph that a module of its model computes; the rest is marked to stay."""
    whole = PartOfWhole(model, path)
    part = find_part(captured, path, capture(whole.module, whole.read(example)))
    part.mark_others(captured)
    return part


def _rewrites(
    network: CapturedNetwork, pricing: Pricing, limits: SpanLimits
) -> tuple[list[Candidate], tuple[Refusal, ...]]:
    """Return the rewrites that can be tried, and the refusals of spans."""
    spans = enumerate_spans(network, limits)
    return pricing.candidates(spans), (*_refusals(network, spans), *_left_out(network, limits))


def _captured(model: nn.Module, example: Tensor | Examples, guess: str) -> fx.GraphModule:
    try:
        return capture(model, example)
    except CaptureError as error:
        if not guess:
            raise
        (image,) = as_tensors(example)
        raise CaptureError(
            f"{type(model).__name__} does not take images of shape {tuple(image.shape)}, which were tried without "
            "example_inputs or data; pass example_inputs of the right shape"
        ) from error


def _folded(captured: fx.GraphModule) -> fx.GraphModule:
    network = copy.deepcopy(captured)
    fold_batch_norms(network)
    return network


def _refusals(network: CapturedNetwork, spans: Iterable[Span]) -> Iterator[Refusal]:
    for span in spans:
        if span.refusal and not is_output(network.nodes[span.exit]):
            at, why = _parted(network, span)
            yield Refusal(span.entry, span.exit, network.words(span.nodes), why, at)


def _left_out(network: CapturedNetwork, limits: SpanLimits) -> Iterator[Refusal]:
    """Yield a refusal for each layer that no choice of a kind can change."""
    for each in kinds(limits.kinds):
        for name, why in each.left_out(network, limits):
            (entry, *_) = network.nodes[name].all_input_nodes
            yield Refusal(entry.name, name, network.words([name]), why)


def _parted(network: CapturedNetwork, span: Span) -> tuple[str, str]:
    """Return the module that a refusal begins with, or "", and the rest of the sentence."""
    modules = {network.words(span.nodes), *(module_path(network.nodes[name]) for name in span.nodes)}
    at, colon, why = span.refusal.partition(": ")
    return (at, why) if colon and at in modules else ("", span.refusal)
