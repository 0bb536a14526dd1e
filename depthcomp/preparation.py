"""Preparation before any measurement: the captured network, its images, and its candidate rewrites."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from depthcomp.data.batches import Data, enough_images, labelled_images, synthetic_batches
from depthcomp.data.calibration import CalibrationSet, Layout, cross_validated, layouts, separate
from depthcomp.data.example import infer_example
from depthcomp.data.label_check import foreign_labels
from depthcomp.data.randomness import entered, own_randomness
from depthcomp.data.scenes import few_scenes
from depthcomp.data.unlabelled import labelled_alone
from depthcomp.errors import CaptureError, DataError, TableError
from depthcomp.latency.pricing import Candidate, Pricing
from depthcomp_errors.first_line import first_line
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
from fx_passes.kinds import kinds
from fx_passes.module_paths import module_path
from fx_passes.norm_statistics import norm_statistics
from fx_passes.outputs import is_output, tensors_of
from fx_passes.preconditions import require_capturable
from latency_tables import OperatorSignature

__all__ = ["DEFAULT_LIMITS", "Prepared", "Refusal", "measurable", "needed_operators", "prepare"]

SYNTHETIC_IMAGES = 64
LOOKED_AT = 256  # scenes are counted in about this many images
DEFAULT_LIMITS = SpanLimits(layer_pruning=False, other_ends=(), skips_pixels=False)
"""Limits of the default choices: a fit replaces layer pruning, and its target is the original end."""
_NO_DATA = (
    "without data the importance is estimated on synthetic images; pass data=, even a few dozen unlabelled images, "
    "for a far better result"
)
_FIXED_BATCH = (
    "the network and its compressed form take only batches of one image, as its forward reads sizes as Python numbers "
    "(asserts do, too); remove these reads to allow other batches"
)
_CPU = torch.device("cpu")
_ONE_IMAGE = "the loss is estimated on the one image that was also fitted to; pass more images in data="


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

    Attributes:
        original: the canonical graph of the model, its norms folded, as runtimes run it.
        original_pricing: the signatures of the original's operators.
        free: the free merges, which change only the latency.
        captured: the canonical graph after the free merges.
        network: `captured` with its norms folded.
        example: the example input (n, c, h, w); latency is measured at its shape.
        calibration: the images to fit and to judge on.
        pricing: the signatures of the operators of `network`.
        candidates: the rewrites that can be tried.
        refusals: the spans that cannot be rewritten, or only in some ways.
        notes: notes for the user.
    """

    original: fx.GraphModule
    original_pricing: Pricing
    free: Plan
    captured: CapturedNetwork
    network: CapturedNetwork
    example: Tensor
    calibration: CalibrationSet
    pricing: Pricing
    candidates: list[Candidate]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]


def prepare(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | None,
    data: Data | None,
    val_data: Data | None,
    seed: int,
    *,
    most: int | None = None,
    limits: SpanLimits = DEFAULT_LIMITS,
) -> Prepared:
    """Prepare a model for measurement and compression; the model is not changed.

    Args:
        model: the model.
        example_inputs: a batch of images; None to take one from the data or guess.
        data: calibration images.
        val_data: images to judge on; None to let parts of the calibration images judge in turn.
        seed: seed of the images' order, for a shuffled loader too.
        most: most images to read from each source; None to choose by their size.
        limits: limits of the candidates' choices.

    Raises:
        CaptureError: the model or its example inputs are unusable.
        DataError: the data are empty or do not fit the model.
    """
    require_capturable(model)  # before its data are read
    with own_randomness(_CPU), entered(data, seed, 0):
        example, data, guess = infer_example(model, example_inputs, data)
    original, free, captured = _networks(model, example, guess)
    network = CapturedNetwork(_folded(captured.gm), norm_statistics(captured.gm))
    images, note = _calibration(
        network.gm, data, val_data, example, seed, enough_images(example) if most is None else most
    )
    calibration, foreign = _with_known_classes(network.gm, images)
    few = "" if data is None else few_scenes(_scores(network.gm, calibration))
    pricing = Pricing(network)
    candidates, refusals = _rewrites(network, pricing, limits)
    return Prepared(
        original.gm, Pricing(original), free, captured, network, example, calibration, pricing, candidates,
        refusals, notes=tuple(text for text in (guess, note, foreign, few) if text),
    )  # fmt: skip


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
    model: nn.Module, example: Tensor, *, limits: SpanLimits = DEFAULT_LIMITS
) -> dict[OperatorSignature, list[str]]:
    """Return every operator that a compression of `model` measures, with its places.

    No data are needed and nothing is measured; the model is not changed. A place is the name of a layer, or a rewrite
    that contains the operator.

    Args:
        model: the model.
        example: a batch of images (n, c, h, w); latency will be measured at its shape.
        limits: limits of the rewrites' choices.

    Raises:
        CaptureError: the model or its example input is unusable.
    """
    require_capturable(model)
    original, _, captured = _networks(model, example)
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


def _networks(model: nn.Module, example: Tensor, guess: str = "") -> tuple[CapturedNetwork, Plan, CapturedNetwork]:
    """Return the network as runtimes run it, the free merges, and the captured network after them."""
    captured = CapturedNetwork(_captured(model, example, guess))
    original, free = CapturedNetwork(_folded(captured.gm)), free_merges(captured)
    return original, free, CapturedNetwork(collapse_spans(linearize(captured, free), free))


def _rewrites(
    network: CapturedNetwork, pricing: Pricing, limits: SpanLimits
) -> tuple[list[Candidate], tuple[Refusal, ...]]:
    """Return the rewrites that can be tried, and the refusals of spans."""
    spans = enumerate_spans(network, limits)
    return pricing.candidates(spans), (*_refusals(network, spans), *_left_out(network, limits))


def _captured(model: nn.Module, example: Tensor, guess: str) -> fx.GraphModule:
    try:
        return capture(model, example)
    except CaptureError as error:
        if not guess:
            raise
        raise CaptureError(
            f"{type(model).__name__} does not take images of shape {tuple(example.shape)}, which were tried without "
            "example_inputs or data; pass example_inputs of the right shape"
        ) from error


def _calibration(
    network: fx.GraphModule,
    data: Data | None,
    val_data: Data | None,
    example: Tensor,
    seed: int,
    most: int,
) -> tuple[CalibrationSet, str]:
    """Return the images to work with, synthetic where there are none, and a note on them for the user."""
    labels: Tensor | None = None
    if data is None:
        images, note = torch.cat(synthetic_batches(example, SYNTHETIC_IMAGES, seed)), _NO_DATA
    else:
        images, labels, note = labelled_alone(*_read(data, example, "data", most, seed), "data")
    layout = _layout(network, images)
    if layout.largest < min(layouts(images)[0].largest, len(images)):
        note = "; ".join(filter(None, (note, _FIXED_BATCH)))
    if val_data is not None:
        found = _read(val_data, example, "val_data", most, seed)
        judging, classes, other = labelled_alone(*found, "val_data")
        pair = None if labels is None or classes is None else (labels, classes)
        return separate(images, judging, seed, layout, pair), "; ".join(filter(None, (note, other)))
    return cross_validated(images, seed, layout, labels), _ONE_IMAGE if len(images) == 1 else note


def _read(data: Data, example: Tensor, argument: str, most: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return images and classes; a seed fixes the draws of random data."""
    with own_randomness(_CPU), entered(data, seed, 0):
        return labelled_images(data, example, argument=argument, most=most)


def _with_known_classes(network: fx.GraphModule, calibration: CalibrationSet) -> tuple[CalibrationSet, str]:
    """Return the images, without labels that the network's outputs do not match, and a note for the user.

    Raises:
        DataError: a label is no class of the network.
    """
    if calibration.labels is None:
        return calibration, ""
    with torch.no_grad():
        outputs = [network(batch) for batch in calibration.batches]
    if not all(isinstance(scores, Tensor) and scores.ndim == 2 and scores.shape[1] > 1 for scores in outputs):
        return replace(calibration, labels=None), ""
    scores, labels = torch.cat(outputs).cpu(), torch.cat(calibration.labels)
    if not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the network has {scores.shape[1]} "
            f"classes, 0 to {scores.shape[1] - 1}; number the labels as the network does, or give images alone"
        )
    accuracy = float((scores.argmax(1) == labels).float().mean())
    note = foreign_labels(accuracy, scores.shape[1])
    return (replace(calibration, labels=None) if note else calibration), note


def _scores(network: fx.GraphModule, calibration: CalibrationSet) -> Tensor:
    """Return the outputs for some of the images that fits see, (n, ...); nothing where they are no tensors."""
    batches = zip(calibration.batches, calibration.folds, strict=True)
    fitted = [batch for batch, fold in batches if fold != calibration.withheld]
    step = math.ceil(sum(map(len, fitted)) / LOOKED_AT)
    with torch.no_grad():
        outputs = [network(batch) for batch in fitted[::step]]
    return torch.cat(outputs) if all(isinstance(scores, Tensor) for scores in outputs) else torch.zeros(0)


def _layout(network: fx.GraphModule, images: Tensor) -> Layout:
    """Return the fastest layout that a network takes: `view` needs contiguous images, a fixed size batches of one.

    With a fixed size a reshape may also pass without an error, and join several images in one row.

    Raises:
        CaptureError: the network takes only batches of the size that it was captured for.
    """
    for layout in layouts(images):
        try:
            one, several = (
                _shapes(network, images[:size].to(memory_format=layout.memory))
                for size in (1, min(layout.largest, len(images)))
            )
        except RuntimeError as error:
            reason = error
        else:
            if all(many[1:] == single[1:] for single, many in zip(one, several, strict=True)):
                return layout
    raise CaptureError(
        f"the network was captured for a batch of a fixed size and takes no single image ({first_line(reason)}); "
        "pass example_inputs with one image, or reshape with x.shape[0] left symbolic"
    ) from reason


def _shapes(network: fx.GraphModule, images: Tensor) -> list[tuple[int, ...]]:
    with torch.no_grad():
        output = fx.Interpreter(network).run(images)  # it prints no traceback
    return [tuple(part.shape) for part in tensors_of(output)]


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
