"""Calibration images of a network: read or synthetic, laid out, in folds, with classes and the loss of outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from depthcomp.data.batches import Data, LabelledImages, enough_images, labelled_images, synthetic_batches
from depthcomp.data.calibration import CalibrationSet, Layout, cross_validated, layouts, separate
from depthcomp.data.input_names import ONE_IMAGE, InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.data.label_check import foreign_labels
from depthcomp.data.output_loss import OutputLoss
from depthcomp.data.output_spreads import floats_of, spreads_of
from depthcomp.data.randomness import entered, own_randomness
from depthcomp.data.scenes import few_scenes
from depthcomp.data.unlabelled import labelled_alone
from depthcomp.errors import CaptureError, DataError
from depthcomp_errors.first_line import first_line
from fx_passes.outputs import tensors_of

__all__ = ["calibration_of"]

SYNTHETIC_IMAGES = 64
LOOKED_AT = 256  # scenes are counted in about this many images
_CPU = torch.device("cpu")
_NO_DATA = (
    "without data the importance is estimated on synthetic images; pass data=, even a few dozen unlabelled images, "
    "for a far better result"
)
_FIXED_BATCH = (
    "the network and its compressed form take only batches of one image, as its forward reads sizes as Python numbers "
    "(asserts do, too); remove these reads to allow other batches"
)
_ONE_IMAGE = "the loss is estimated on the one image that was also fitted to; pass more images in data="


def calibration_of(
    network: fx.GraphModule,
    example: Inputs,
    data: Data | None,
    val_data: Data | None,
    seed: int,
    *,
    most: int | None,
    loss: OutputLoss,
    names: InputNames = ONE_IMAGE,
) -> tuple[CalibrationSet, str, tuple[str, ...]]:
    """Return the images to work with, what a loss on them is in words, and notes for the user.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        example: a batch of images, or of several inputs.
        data: calibration images; None for synthetic ones.
        val_data: images to judge on; None to let parts of the calibration images judge in turn.
        seed: seed of the images' order, for a shuffled loader too.
        most: most images to read from each source; None to choose by their size.
        loss: what the user says about the loss of outputs.
        names: names of the inputs.

    Raises:
        CaptureError: the network takes only batches of the size that it was captured for.
        DataError: the data are empty, or do not fit the network or what the user says of it.
    """
    most = enough_images(example) if most is None else most
    read = functools.partial(_read, example=example, most=most, seed=seed, names=names)
    images, targets, note = _read_in_folds(network, data, val_data, example, seed, read)
    judged, judged_by = _with_loss(network, images, loss, targets)
    calibration, foreign = _with_known_classes(network, judged)
    few = "" if data is None else few_scenes(_scores(network, calibration))
    return calibration, judged_by, (note, foreign, few)


def _read_in_folds(
    network: fx.GraphModule,
    data: Data | None,
    val_data: Data | None,
    example: Inputs,
    seed: int,
    read: Callable[[Data, str], LabelledImages],
) -> tuple[CalibrationSet, tuple[int, ...] | None, str]:
    """Return the images in folds, synthetic where there are none, the shape of targets, and a note for the user."""
    labels: Tensor | None = None
    targets: tuple[int, ...] | None = None
    if data is None:
        images, note = Inputs.joined(synthetic_batches(example.real, SYNTHETIC_IMAGES, seed)), _NO_DATA
    else:
        found = read(data, "data")
        images, labels, note = labelled_alone(found.images, found.labels, "data")
        targets = found.targets
    layout = _layout(network, images)
    if layout.largest < min(layouts(images)[0].largest, len(images)):
        note = "; ".join(filter(None, (note, _FIXED_BATCH)))
    if val_data is not None:
        found = read(val_data, "val_data")
        judging, classes, other = labelled_alone(found.images, found.labels, "val_data")
        pair = None if labels is None or classes is None else (labels, classes)
        calibration, note = separate(images, judging, seed, layout, pair), "; ".join(filter(None, (note, other)))
    else:
        calibration, note = cross_validated(images, seed, layout, labels), _ONE_IMAGE if len(images) == 1 else note
    return calibration, targets, note


def _with_loss(
    network: fx.GraphModule, calibration: CalibrationSet, loss: OutputLoss, targets: tuple[int, ...] | None
) -> tuple[CalibrationSet, str]:
    """Return the images with all that the loss needs to know of the original's outputs, and the loss in words.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        calibration: the images.
        loss: what the user says about the loss of outputs.
        targets: shape of the numbers to predict that come with each image; None where there are none.

    Raises:
        DataError: the user says that outputs are scores, and their shape is another.
    """
    with torch.no_grad():
        output = calibration.batches[0].through(network)
    if loss.outputs is None and [tuple(part.shape[1:]) for part in floats_of(output)] == [targets]:
        loss = replace(loss, outputs="values")
    if loss.outputs == "scores" and not loss.flattens(output):
        shapes = ", ".join(str(tuple(part.shape)) for part in tensors_of(output))
        raise DataError(
            f"outputs (='scores') needs a network that returns one tensor of class scores (n, classes), but it returns "
            f"{shapes}; pass outputs='values', or leave it out"
        )
    if not loss.flattens(output):
        loss = replace(loss, spreads=spreads_of(_some_outputs(network, calibration.batches)))
    return replace(calibration, loss=loss), loss.describe(output)


def _some_outputs(network: fx.GraphModule, batches: Sequence[Inputs]) -> Iterator[Any]:
    """Yield the outputs for about LOOKED_AT images."""
    step = math.ceil(sum(map(len, batches)) / LOOKED_AT)
    for batch in batches[::step]:
        with torch.no_grad():
            yield batch.through(network)


def _read(data: Data, argument: str, *, example: Inputs, most: int, seed: int, names: InputNames) -> LabelledImages:
    """Return images and classes; a seed fixes the draws of random data."""
    with own_randomness(_CPU), entered(data, seed, 0):
        return labelled_images(data, example, argument=argument, most=most, names=names)


def _with_known_classes(network: fx.GraphModule, calibration: CalibrationSet) -> tuple[CalibrationSet, str]:
    """Return the images, without labels that the network's outputs do not match, and a note for the user.

    Raises:
        DataError: a label is no class of the network.
    """
    if calibration.labels is None:
        return calibration, ""
    with torch.no_grad():
        outputs = [batch.through(network) for batch in calibration.batches]
    if not all(map(calibration.loss.are_scores, outputs)):
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
    outputs = list(_some_outputs(network, fitted))
    return torch.cat(outputs) if all(isinstance(scores, Tensor) for scores in outputs) else torch.zeros(0)


def _layout(network: fx.GraphModule, images: Inputs) -> Layout:
    """Return the fastest layout that a network takes: `view` needs contiguous images, a fixed size batches of one.

    With a fixed size a reshape may also pass without an error, and join several images in one row; or a loop, and
    leave images out.

    Raises:
        CaptureError: the network takes only batches of the size that it was captured for.
    """
    for layout in layouts(images):
        count = min(layout.largest, len(images))
        try:
            one, several = (_shapes(network, images[:size].laid_out(layout.memory)) for size in (1, count))
        except RuntimeError as error:
            reason = error
        else:
            pairs = list(zip(one, several, strict=True))
            rows_fit = all(many[1:] == single[1:] for single, many in pairs)
            if rows_fit and any(many[:1] == tuple(count * rows for rows in single[:1]) for single, many in pairs):
                return layout
    raise CaptureError(
        f"the network was captured for a batch of a fixed size and takes no single image ({first_line(reason)}); "
        "pass example_inputs with one image, or reshape with x.shape[0] left symbolic"
    ) from reason


def _shapes(network: fx.GraphModule, images: Inputs) -> list[tuple[int, ...]]:
    with torch.no_grad():
        output = images.through(fx.Interpreter(network).run)  # it prints no traceback
    return [tuple(part.shape) for part in tensors_of(output)]
