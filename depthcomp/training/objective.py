"""Loss that training minimises, and metric that chooses the best epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthcomp.data.batches import ROUNDING
from depthcomp.data.output_loss import OutputKind, is_scores
from depthcomp.data.output_spreads import power, spread_of
from depthcomp.data.unlabelled import IGNORED
from depthcomp.errors import DataError, DepthCompError, TrainingError
from depthcomp.training.batches import Batch
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes
from depthcomp_errors.first_line import first_line
from fx_passes.outputs import tensors_of

__all__ = ["Objective", "Score", "difference"]


@dataclass(frozen=True, slots=True)
class Score:
    """Score of a network on the validation data.

    Attributes:
        loss: mean of the loss that training minimises.
        metric: mean of the accuracy, of the user's metric, or of the negative loss; higher is better.
    """

    loss: float
    metric: float

    def beats(self, other: Score) -> bool:
        """Return whether this score is better: by metric, then by lower loss."""
        return (self.metric, -self.loss) > (other.metric, -other.loss)


def difference(
    wanted: Any,
    found: Any,
    temperature: float = 1.0,
    *,
    labels: Tensor | None = None,
    outputs: OutputKind | None = None,
) -> Tensor:
    """Return a differentiable distance between two networks' outputs.

    For class scores (n, classes), or (n, classes, h, w) for each pixel, it is the mean of
    KL(softmax wanted/T || softmax found/T) * T^2 at temperature T, as in Hinton et al. (2015). For other outputs it is
    the mean squared difference relative to the variance of each channel of `wanted`, averaged over tensors. Outputs
    (n, c, h, w) are scores only where `labels` are integers (n, h, w); else they may be colours. Outputs (n, c) are
    scores unless labels are real values to predict, or `outputs` says "values".
    """

    def are_scores(part: Tensor) -> bool:
        if outputs == "values":
            return False
        if is_scores(part):
            return (
                outputs == "scores" or labels is None or not labels.is_floating_point() or _are_classes_of(part, labels)
            )
        if labels is None or labels.is_floating_point() or part.ndim < 3:
            return False
        return _are_classes_of(part, labels)

    pairs = [(a, b) for a, b in zip(tensors_of(wanted), tensors_of(found), strict=True) if a.is_floating_point()]
    terms = [_divergence(a, b, temperature) if are_scores(a) else _error(a, b, _variance(a.float())) for a, b in pairs]
    if not terms:
        raise TrainingError(
            "the network returns no real values, so nothing can be learnt from the teacher's outputs; return scores "
            "beside classes, or give a loss of your own"
        )
    return torch.stack(terms).mean()


def _are_classes_of(outputs: Tensor, labels: Tensor) -> bool:
    """Return whether labels are classes for outputs (n, classes, ...), or shares of all classes."""
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


def _variance(wanted: Tensor) -> Tensor:
    """Return the variance of each channel, of all values in rows: a batch has too few of these for each."""
    return power(wanted) if wanted.ndim < 3 else spread_of(wanted)


def _error(wanted: Tensor, found: Tensor, variance: Tensor) -> Tensor:
    return ((wanted.float() - found.float()).square() / variance).mean()


class Objective:
    """The loss and the metric of a training.

    Args:
        config: the weights of the loss, or functions.
        teacher: the network whose outputs the student learns; None for none.
        returns_features: whether student and teacher return (outputs, inner tensors), to be compared one by one.

    Attributes:
        teacher: the teacher.
    """

    def __init__(self, config: FinetuneConfig, teacher: nn.Module | None, *, returns_features: bool = False) -> None:
        self._config = config
        self.teacher = teacher
        self._returns_features = returns_features

    def metric_name(self, batch: Batch) -> str:
        """Return the name of the metric that chooses the best epoch, for data like `batch`."""
        metric = self._config.metric
        if callable(metric):
            return getattr(metric, "__name__", type(metric).__name__)
        if metric == "auto":
            labelled = batch.labels is not None and self._config.labels
            return "accuracy" if labelled and self._config.loss is None else "loss"
        if metric == "accuracy" and batch.labels is None:
            raise DataError("metric='accuracy' needs labels, but the data have none; give (images, labels)")
        return metric

    def loss(self, student: nn.Module, batch: Batch, labelled: float = 1.0) -> Tensor:
        """Return the loss of a batch: the mean over its counted labels, plus the mean over its images of other terms.

        Args:
            student: the network.
            batch: the batch.
            labelled: factor of the labels' term, which corrects for batches with more labels per image where several
                batches are weighted by images.

        Raises:
            DataError: the labels do not fit.
            TrainingError: a network or the user's function fails on the batch, or the loss depends on no weight.
        """
        with _explained(batch):
            if self._config.loss is None:
                by_label, rest = self._terms(self._outputs(student, batch), self._teacher_outputs(batch), batch)
                value = by_label * labelled + rest
            else:
                value = _one_number(self._config.loss(student, self.teacher, batch.item), "loss")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise TrainingError(
                "the loss depends on no trained weight; compute it from student(images), without detach"
            )
        return value

    def judge(self, student: nn.Module, batches: Iterable[Batch], name: str, processes: Processes) -> Score:
        """Return the score of a network over batches; NaN where a loss is NaN, or an accuracy has no label.

        Terms with labels are means over the counted labels, other terms means over the images.
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
        """Return the labels' part of the loss, the rest, and the metric where that is not the loss."""
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
        return batch.images.through(network)

    def _teacher_outputs(self, batch: Batch) -> Any:
        wanted = self._config.distillation or self._config.features
        if self.teacher is None or not wanted:
            return None
        with torch.no_grad():
            return batch.images.through(self.teacher)

    def _terms(self, found: Any, wanted: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the labels' part of the loss, a mean over counted labels, and the rest, a mean over images."""
        by_label, rest = [], []
        if self._returns_features:
            (found, found_inside), (wanted, wanted_inside) = found, wanted
            errors = [_error(a, b, power(a.float())) for a, b in zip(wanted_inside, found_inside, strict=True)]
            rest.append(self._config.features * torch.stack(errors).mean())
        if batch.labels is not None and self._config.labels:
            by_label.append(self._config.labels * self._cross_entropy(self._scores(found, batch), batch))
        if wanted is not None and self._config.distillation:
            distance = difference(
                wanted, found, self._config.temperature, labels=batch.labels, outputs=self._config.outputs
            )
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
        """Return the class scores for a batch's labels."""
        labels = batch.labels
        assert labels is not None  # asked for with labels alone
        outputs = outputs[0] if self._returns_features and isinstance(outputs, tuple) else outputs
        if not isinstance(outputs, Tensor) or not _are_classes_of(outputs, labels):
            what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
            raise DataError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit outputs of {what}: they must be "
                "classes, or shares of all classes that are 0 or more and sum to 1; give a loss of your own, or "
                "labels=0 to learn from the teacher alone"
            )
        if not labels.is_floating_point():
            _require_in_range(labels, outputs.shape[1])
        return outputs


@contextmanager
def _explained(batch: Batch) -> Iterator[None]:
    """Turn a failure of a network or of a user's function into a TrainingError that describes the batch."""
    try:
        yield
    except DepthCompError:
        raise
    except Exception as error:
        reason = first_line(error, empty="no message")
        raise TrainingError(
            f"loss or metric cannot be computed for a batch of images {batch.images} "
            f"({type(error).__name__}: {reason}); student, teacher and functions must take such images, and both "
            "networks return outputs of one shape; a loss or metric of your own is given the two networks, not their "
            "outputs, and the batch"
        ) from error


def _require_in_range(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise DataError(
            f"the data hold the label {int(wrong[0])}, but the network has {classes} classes, 0 to {classes - 1}; "
            f"correct the labels, or set labels to ignore to {IGNORED}"
        )


def _accuracy(scores: Tensor, batch: Batch) -> float:
    """Return the share of counted labels that the network predicts; 0 where no label counts."""
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
    raise TrainingError(f"the function {what} returned {shape}, but must return a tensor with one number")
