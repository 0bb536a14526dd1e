"""What training minimises and what decides which epoch is the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depthcomp.data.unlabelled import IGNORED
from depthcomp.errors import DataError, DepthCompError, TrainingError
from depthcomp.fitting.divergence import is_scores, power
from depthcomp.training.batches import Batch
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes
from depthcomp_errors.first_line import first_line

__all__ = ["Objective", "Score", "difference"]

ROUNDING = 0.01  # by which the shares of an image's classes may miss 1; half-precision ones do


@dataclass(frozen=True, slots=True)
class Score:
    """How good a network is on the validation data.

    Attributes:
        loss: the mean of what training minimises.
        metric: the mean of what is to be large: accuracy, the user's metric, or the loss with its sign changed.
    """

    loss: float
    metric: float

    def beats(self, other: Score) -> bool:
        """Say whether it is better; of equal metrics, the lower loss is."""
        return (self.metric, -self.loss) > (other.metric, -other.loss)


def difference(wanted: Any, found: Any, temperature: float = 1.0, *, masks: Tensor | None = None) -> Tensor:
    """Return how far one network's outputs are from another's, to train by.

    For class scores (n, classes), and for scores of classes by pixel (n, classes, h, w), the mean of
    KL(softmax wanted/T || softmax found/T) * T^2, as in Hinton et al. (2015), T being the temperature; for
    everything else the mean square of the difference relative to the variance of what is wanted, averaged over
    tensors. That channels of pixels are scores and not colours, the masks beside them tell: integers (n, h, w).
    """

    def are_scores(outputs: Tensor) -> bool:
        return is_scores(outputs) or (masks is not None and outputs.ndim == 4 and _are_classes_of(outputs, masks))

    pairs = [(a, b) for a, b in zip(tree_leaves(wanted), tree_leaves(found), strict=True) if isinstance(a, Tensor)]
    terms = [_divergence(a, b, temperature) if are_scores(a) else _error(a, b) for a, b in pairs]
    return torch.stack(terms).mean()


def _are_classes_of(outputs: Tensor, labels: Tensor) -> bool:
    """Say whether labels name the classes that outputs (n, classes, ...) score, or tell the share of each."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        return False
    if not labels.is_floating_point():
        return labels.shape == (outputs.shape[0], *outputs.shape[2:])
    if labels.shape != outputs.shape:
        return False
    misses = (labels.float().sum(1) - 1).abs()
    return bool((labels >= 0).all()) and bool((misses <= ROUNDING).all())


def _divergence(wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
    target, scores = (F.log_softmax(outputs.float() / temperature, dim=1) for outputs in (wanted, found))
    pointwise = F.kl_div(scores, target, reduction="none", log_target=True)
    return pointwise.sum(1).mean() * temperature**2


def _error(wanted: Tensor, found: Tensor) -> Tensor:
    wanted, found = wanted.float(), found.float()
    return (wanted - found).square().mean() / power(wanted)


class Objective:
    """The loss and the metric of a training.

    Args:
        config: the weights of the loss, or functions.
        teacher: whose outputs the student's shall be like; None for none.
        returns_features: whether student and teacher return (outputs, tensors inside), to be compared one by one.

    Attributes:
        teacher: the same.
    """

    def __init__(self, config: FinetuneConfig, teacher: nn.Module | None, *, returns_features: bool = False) -> None:
        self._config = config
        self.teacher = teacher
        self._returns_features = returns_features

    def metric_name(self, batch: Batch) -> str:
        """Return what decides which epoch is the best, for data like `batch`."""
        metric = self._config.metric
        if callable(metric):
            return getattr(metric, "__name__", type(metric).__name__)
        if metric == "auto":
            labelled = batch.labels is not None and self._config.labels
            return "accuracy" if labelled and self._config.loss is None else "loss"
        if metric == "accuracy" and batch.labels is None:
            raise DataError("metric='accuracy' needs labels, and the data have none; give (images, labels)")
        return metric

    def loss(self, student: nn.Module, batch: Batch, labelled: float = 1.0) -> Tensor:
        """Return the mean loss over a batch: its labels' over those that count, the rest over the images.

        Args:
            student: the network.
            batch: the batch.
            labelled: by which the labels' part is multiplied; what a batch with more labels by image than others
                needs where the means over several are weighted by images.

        Raises:
            DataError: the labels do not fit.
            TrainingError: a network or the user's function fails on the batch, or the loss hangs on no weight.
        """
        with _explained(batch):
            if self._config.loss is None:
                by_label, rest = self._terms(self._outputs(student, batch), self._teacher_outputs(batch), batch)
                value = by_label * labelled + rest
            else:
                value = _one_number(self._config.loss(student, self.teacher, batch.item), "loss")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise TrainingError(
                "the loss depends on no weight that is trained; compute it from student(images), not detached"
            )
        return value

    def judge(self, student: nn.Module, batches: Iterable[Batch], name: str, processes: Processes) -> Score:
        """Return the score of a network over batches; NaN where a loss is, and the accuracy where no label counts.

        What hangs on labels is the mean over those that count, everything else the mean over the images.
        """
        images = counted = by_label = by_image = metric = 0.0
        for batch in batches:
            if not len(batch):
                continue
            with _explained(batch):
                label_loss, image_loss, there = self._judge(student, batch, name)
            images, counted = images + len(batch), counted + batch.counted
            by_label, by_image = by_label + label_loss * batch.counted, by_image + image_loss * len(batch)
            metric += there * (batch.counted if self._by_label(name) else len(batch))
        images, counted, by_label, by_image, metric = processes.sums(images, counted, by_label, by_image, metric)
        loss = by_image / images + (by_label / counted if counted else by_label)
        if self._by_label(name):
            return Score(loss, metric / counted if counted else math.nan)
        return Score(loss, metric / images if callable(self._config.metric) else -loss)

    def _by_label(self, name: str) -> bool:
        return name == "accuracy" and not callable(self._config.metric)

    def _judge(self, student: nn.Module, batch: Batch, name: str) -> tuple[float, float, float]:
        """Return the part of the loss that hangs on labels, the rest, and the metric, where that is not the loss."""
        outputs, by_label = None, 0.0
        if self._config.loss is None:
            outputs = self._outputs(student, batch)
            by_label, rest = map(float, self._terms(outputs, self._teacher_outputs(batch), batch))
        else:
            rest = float(self.loss(student, batch))
        if callable(self._config.metric):
            metric = self._config.metric(student, self.teacher, batch.item)
            return by_label, rest, float(_one_number(metric, "metric"))
        if self._by_label(name):
            outputs = self._outputs(student, batch) if outputs is None else outputs
            return by_label, rest, _accuracy(self._scores(outputs, batch), batch)
        return by_label, rest, 0.0

    def _outputs(self, network: nn.Module, batch: Batch) -> Any:
        return network(batch.images)

    def _teacher_outputs(self, batch: Batch) -> Any:
        wanted = self._config.distillation or self._config.features
        if self.teacher is None or not wanted:
            return None
        with torch.no_grad():
            return self.teacher(batch.images)

    def _terms(self, found: Any, wanted: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean over the labels that count of what hangs on them, and the mean over images of the rest."""
        by_label, rest = [], []
        if self._returns_features:
            (found, found_inside), (wanted, wanted_inside) = found, wanted
            errors = [_error(a, b) for a, b in zip(wanted_inside, found_inside, strict=True)]
            rest.append(self._config.features * torch.stack(errors).mean())
        if batch.labels is not None and self._config.labels:
            by_label.append(self._config.labels * self._cross_entropy(self._scores(found, batch), batch))
        if wanted is not None and self._config.distillation:
            masks = None if batch.labels is None or batch.labels.is_floating_point() else batch.labels
            distance = difference(wanted, found, self._config.temperature, masks=masks)
            rest.append(self._config.distillation * distance)
        if not by_label and not rest:
            raise TrainingError(
                "there is nothing to train by: the data have no labels and there is no teacher, or their weights are "
                "0; give (images, labels), a teacher with distillation above 0, or a loss of your own"
            )
        return _sum(by_label), _sum(rest)

    def _cross_entropy(self, scores: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None  # asked for with labels alone
        if not batch.counted:
            return 0 * scores.sum()
        smoothing = self._config.label_smoothing
        return F.cross_entropy(scores, batch.labels, ignore_index=IGNORED, label_smoothing=smoothing)

    def _scores(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the scores that stand beside a batch's labels."""
        labels = batch.labels
        assert labels is not None  # asked for with labels alone
        outputs = outputs[0] if self._returns_features and isinstance(outputs, tuple) else outputs
        if not isinstance(outputs, Tensor) or not _are_classes_of(outputs, labels):
            what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
            raise DataError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not stand beside outputs of {what} as "
                "classes do, or as shares of all classes that are 0 or more and sum to 1; give a loss of your own, or "
                "labels=0 to learn from the teacher alone"
            )
        if not labels.is_floating_point():
            _require_in_range(labels, outputs.shape[1])
        return outputs


@contextmanager
def _explained(batch: Batch) -> Iterator[None]:
    """Say in a sentence on what a network or a function of the user's failed."""
    try:
        yield
    except DepthCompError:
        raise
    except Exception as error:
        reason = first_line(error, empty="no message")
        raise TrainingError(
            f"loss or metric cannot be computed for a batch of images {tuple(batch.images.shape)} of "
            f"{batch.images.dtype} ({type(error).__name__}: {reason}); student, teacher and functions must take such "
            "images, and both networks return outputs of one shape; a loss or metric of your own is given the two "
            "networks, not their outputs, and the batch"
        ) from error


def _require_in_range(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise DataError(
            f"the data hold the label {int(wrong[0])}, and the network tells {classes} classes apart, 0 to "
            f"{classes - 1}; mend the labels, or set those to pass over to {IGNORED}"
        )


def _accuracy(scores: Tensor, batch: Batch) -> float:
    """Return the share of the labels that count for which the network is right; 0 where none does."""
    assert batch.labels is not None  # asked for with labels alone
    labels = batch.labels.argmax(1) if batch.labels.is_floating_point() else batch.labels
    counted = labels != IGNORED
    return float((scores.argmax(1) == labels)[counted].float().mean()) if bool(counted.any()) else 0.0


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _one_number(value: Any, what: str) -> Tensor:
    if what == "metric" and isinstance(value, int | float):
        return torch.tensor(float(value))
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise TrainingError(f"the function {what} returned {shape} and must return a tensor with one number")
