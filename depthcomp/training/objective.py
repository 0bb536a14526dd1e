"""What training minimises and what decides which epoch is the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depthcomp.errors import DataError, DepthCompError, TrainingError
from depthcomp.training.batches import Batch
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.processes import Processes

__all__ = ["Objective", "Score", "difference"]

IGNORED = -100  # the label of pixels without one, by the default of torch's cross-entropy
NOTHING = 1e-12  # a tensor that varies less does not vary


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


def difference(wanted: Any, found: Any, temperature: float = 1.0) -> Tensor:
    """Return how far one network's outputs are from another's, to train by.

    For class scores (n, classes) and scores of classes by pixel (n, classes, h, w) the mean of
    KL(softmax wanted/T || softmax found/T) * T^2, as in Hinton et al. (2015), T being the temperature; for
    everything else the mean square of the difference relative to the variance of what is wanted, averaged over
    tensors.
    """
    pairs = [(a, b) for a, b in zip(tree_leaves(wanted), tree_leaves(found), strict=True) if isinstance(a, Tensor)]
    terms = [_divergence(a, b, temperature) if _are_scores(a) else _error(a, b) for a, b in pairs]
    return torch.stack(terms).mean()


def _are_scores(outputs: Tensor) -> bool:
    return outputs.ndim in (2, 4) and outputs.shape[1] > 1


def _divergence(wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
    target, scores = (F.log_softmax(outputs.float() / temperature, dim=1) for outputs in (wanted, found))
    pointwise = F.kl_div(scores, target, reduction="none", log_target=True)
    return pointwise.sum(1).mean() * temperature**2


def _error(wanted: Tensor, found: Tensor) -> Tensor:
    wanted, found = wanted.float(), found.float()
    return (wanted - found).square().mean() / wanted.var(correction=0).clamp_min(NOTHING)


class Objective:
    """The loss and the metric of a training.

    Args:
        config: the weights of the loss, or functions.
        teacher: whose outputs the student's shall be like; None for none.
        tapped: whether student and teacher return (outputs, tensors inside), to be compared one by one.

    Attributes:
        teacher: the same.
    """

    def __init__(self, config: FinetuneConfig, teacher: nn.Module | None, *, tapped: bool = False) -> None:
        self._config = config
        self.teacher = teacher
        self._tapped = tapped

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

    def loss(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over a batch.

        Raises:
            DataError: the labels do not fit.
            TrainingError: a network or the user's function fails on the batch, or the loss hangs on no weight.
        """
        with _explained(batch):
            if self._config.loss is None:
                value = self._loss(self._outputs(student, batch), self._teacher_outputs(batch), batch)
            else:
                value = _one_number(self._config.loss(student, self.teacher, batch.item), "loss")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise TrainingError(
                "the loss depends on no weight that is trained; compute it from student(images), not detached"
            )
        return value

    def judge(self, student: nn.Module, batches: Iterable[Batch], name: str, processes: Processes) -> Score:
        """Return the score of a network over batches; NaN where a loss is."""
        total = loss = metric = 0.0
        for batch in batches:
            if not len(batch):
                continue
            with _explained(batch):
                here, there = self._judge(student, batch, name)
            total, loss, metric = total + len(batch), loss + here * len(batch), metric + there * len(batch)
        total, loss, metric = processes.sums(total, loss, metric)
        return Score(loss / total, metric / total)

    def _judge(self, student: nn.Module, batch: Batch, name: str) -> tuple[float, float]:
        if self._config.loss is None:
            outputs = self._outputs(student, batch)
            loss = float(self._loss(outputs, self._teacher_outputs(batch), batch))
        else:
            outputs, loss = None, float(self.loss(student, batch))
        if callable(self._config.metric):
            return loss, float(_one_number(self._config.metric(student, self.teacher, batch.item), "metric"))
        if name == "accuracy":
            outputs = self._outputs(student, batch) if outputs is None else outputs
            return loss, _accuracy(self._scores(outputs, batch), batch)
        return loss, -loss

    def _outputs(self, network: nn.Module, batch: Batch) -> Any:
        return network(batch.images)

    def _teacher_outputs(self, batch: Batch) -> Any:
        wanted = self._config.distillation or self._config.features
        if self.teacher is None or not wanted:
            return None
        with torch.no_grad():
            return self.teacher(batch.images)

    def _loss(self, found: Any, wanted: Any, batch: Batch) -> Tensor:
        terms = []
        if self._tapped:
            (found, found_inside), (wanted, wanted_inside) = found, wanted
            errors = [_error(a, b) for a, b in zip(wanted_inside, found_inside, strict=True)]
            terms.append(self._config.features * torch.stack(errors).mean())
        if batch.labels is not None and self._config.labels:
            scores = self._scores(found, batch)
            smoothing = self._config.label_smoothing
            terms.append(self._config.labels * F.cross_entropy(scores, batch.labels, label_smoothing=smoothing))
        if wanted is not None and self._config.distillation:
            terms.append(self._config.distillation * difference(wanted, found, self._config.temperature))
        if not terms:
            raise TrainingError(
                "there is nothing to train by: the data have no labels and there is no teacher, or their weights are "
                "0; give (images, labels), a teacher with distillation above 0, or a loss of your own"
            )
        return torch.stack(terms).sum()

    def _scores(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the scores that stand beside a batch's labels."""
        labels = batch.labels
        assert labels is not None  # asked for with labels alone
        outputs = outputs[0] if self._tapped and isinstance(outputs, tuple) else outputs
        fitting = isinstance(outputs, Tensor) and outputs.ndim >= 2 and (
            labels.shape == outputs.shape
            if labels.is_floating_point()
            else labels.shape == (outputs.shape[0], *outputs.shape[2:])
        )  # fmt: skip
        if not fitting or not isinstance(outputs, Tensor):
            what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
            raise DataError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not stand beside outputs of {what} as "
                "classes do; give a loss of your own, or labels=0 to learn from the teacher alone"
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
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise TrainingError(
            f"loss or metric cannot be computed for a batch of images {tuple(batch.images.shape)} of "
            f"{batch.images.dtype} ({type(error).__name__}: {reason}); student, teacher and functions must take such "
            "images, and both networks return outputs of one shape"
        ) from error


def _require_in_range(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise DataError(
            f"the data hold the label {int(wrong[0])}, and the network tells {classes} classes apart, 0 to "
            f"{classes - 1}; mend the labels, or set those to pass over to {IGNORED}"
        )


def _accuracy(scores: Tensor, batch: Batch) -> float:
    assert batch.labels is not None  # asked for with labels alone
    labels = batch.labels.argmax(1) if batch.labels.is_floating_point() else batch.labels
    counted = labels != IGNORED
    return float((scores.argmax(1) == labels)[counted].float().mean()) if bool(counted.any()) else 0.0


def _one_number(value: Any, what: str) -> Tensor:
    if what == "metric" and isinstance(value, int | float):
        return torch.tensor(float(value))
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise TrainingError(f"the function {what} returned {shape} and must return a tensor with one number")
