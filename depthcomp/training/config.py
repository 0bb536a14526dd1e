"""Configuration of a fine-tuning: frozen, checked when it is made, with JSON both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args

from depthcomp.data.output_loss import OutputKind
from depthcomp.errors import DepthCompError

__all__ = ["FinetuneConfig", "Loss", "Metric"]

Loss = Callable[[Any, Any, Any], Any]
"""(student, teacher, batch) -> the mean loss over the batch, a tensor with one number.

Student and teacher are the networks, not their outputs: `mse_loss(student(batch[0]), teacher(batch[0]))` is one.
"""
Metric = Callable[[Any, Any, Any], Any]
"""(student, teacher, batch) -> the batch's mean of a value, higher is better; a number or a tensor with one."""

SCHEMA_VERSION = 1
SCHEDULES = ("cosine", "tanh", "poly", "wsd", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
METRICS = ("auto", "accuracy", "loss")
_CALLABLES = ("loss", "metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning. None switches a number off, 0 switches a weight off.

    Attributes:
        epochs: passes over the data.
        batch_size: images in a batch where the data are a Dataset or a tensor; a DataLoader has its own.
        workers: processes that load images, where the data are a Dataset.
        accumulate: batches whose gradients make one update.
        optimizer: a name in timm.optim, for example "adamw", "sgd" or "lamb".
        learning_rate: the highest learning rate.
        weight_decay: weight decay of weights with more than one dimension.
        momentum: momentum, for optimisers that have one.
        schedule: schedule of the learning rate, by update: "cosine", "tanh", "poly", "wsd" or "constant", as in
            timm.scheduler.
        warmup: share of all updates in which the learning rate rises from almost 0.
        clip_norm: largest norm of an update's gradient.
        labels: weight of the cross-entropy with the labels, if any; the label -100 is ignored. At 0 no label is used,
            unless `metric` is "accuracy".
        label_smoothing: share of the label's weight that goes to all classes.
        distillation: weight of the distance from the teacher's outputs. For class scores it is the divergence, for each
            pixel where integer masks come with the images; for other outputs, the squared difference.
        outputs: "scores" or "values", what the network's outputs (n, c) are; None tells them by the labels.
        temperature: divides teacher's and student's scores before they are compared.
        features: weight of the squared difference from the teacher's tensors at the ends of rewritten spans, relative
            to their variance.
        ema_decay: decay of the moving average of the weights, which is validated beside the weights; it starts small
            and rises.
        precision: "fp32", or "bf16" or "fp16" for the operations that torch.autocast computes in them.
        channels_last: whether images and weights are laid out with channels last, which is faster on many devices.
        freeze_norms: whether the statistics of batch norms stay as they are; those of norms with frozen weights do.
        fit_norms: whether a batch norm, the identity at first, follows each fitted convolution until the merge.
        loss: a function (student, teacher, batch) -> loss to train by instead. It gets the two networks and an item
            of the data, with its tensors on the training device.
        metric: what decides which epoch is the best: "loss" on the validation data; "accuracy" against the labels;
            "auto", the accuracy where there are class labels and no `loss`, else the loss; or a function
            (student, teacher, batch) -> value, higher is better.
        val_share: share of the data to validate on where there are no validation data.
        checkpoint_updates: updates between checkpoints within an epoch; None for checkpoints at ends of epochs only.
        log_updates: updates between lines of the log.
        tensorboard: whether the log is also written for TensorBoard.
        device: a device of torch; "auto" for the GPU where torch sees one.
        seed: seed of everything random.

    Raises:
        DepthCompError: a value is out of range; the message names it.

    Example:
        >>> config = FinetuneConfig(epochs=3, learning_rate=5e-4)
        >>> FinetuneConfig.from_json(config.to_json()) == config
        True
    """

    epochs: int = 10
    batch_size: int = 64
    workers: int = 0
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    clip_norm: float | None = None
    labels: float = 1.0
    label_smoothing: float = 0.0
    distillation: float = 1.0
    outputs: OutputKind | None = None
    temperature: float = 1.0
    features: float = 0.0
    ema_decay: float | None = 0.999
    precision: str = "fp32"
    channels_last: bool = False
    freeze_norms: bool = False
    fit_norms: bool = True
    loss: Loss | None = None
    metric: str | Metric = "auto"
    val_share: float = 0.1
    checkpoint_updates: int | None = 500
    log_updates: int = 50
    tensorboard: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_updates"):
            self._require(name, _is_count, "a whole number, 1 or more")
        self._require("checkpoint_updates", lambda v: v is None or _is_count(v), "a whole number, 1 or more, or None")
        self._require("workers", lambda v: type(v) is int and v >= 0, "a whole number, 0 or more")
        self._require("seed", lambda v: type(v) is int and 0 <= v < 2**63, "a whole number from 0 to 2**63 - 1")
        for name in ("learning_rate", "temperature"):
            self._require(name, lambda v: _is_number(v) and v > 0, "a number above 0")
        for name in ("weight_decay", "labels", "distillation", "features"):
            self._require(name, lambda v: _is_number(v) and v >= 0, "a number, 0 or more")
        for name in ("momentum", "warmup", "label_smoothing"):
            self._require(name, lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
        self._require("val_share", lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1")
        self._require("clip_norm", lambda v: v is None or (_is_number(v) and v > 0), "a number above 0, or None")
        self._require("ema_decay", lambda v: v is None or (_is_number(v) and 0 < v < 1), "between 0 and 1, or None")
        for name in ("channels_last", "freeze_norms", "fit_norms", "tensorboard"):
            self._require(name, lambda v: type(v) is bool, "True or False")
        for name in ("optimizer", "device"):
            self._require(name, lambda v: isinstance(v, str) and bool(v), "a name")
        self._require("schedule", lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        kinds = get_args(OutputKind)
        self._require("outputs", lambda v: v is None or v in kinds, f"one of {', '.join(kinds)}, or None")
        self._require("precision", lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._require(
            "loss", lambda v: v is None or callable(v), "a function (student, teacher, batch) -> loss, or None"
        )
        self._require("metric", lambda v: callable(v) or v in METRICS, f"a function or one of {', '.join(METRICS)}")

    def _require(self, name: str, accepts: Callable[[Any], bool], what: str) -> None:
        value = getattr(self, name)
        if not accepts(value):
            raise DepthCompError(f"{name} (={value!r}) of FinetuneConfig must be {what}")

    def to_json(self) -> str:
        """Return the configuration as JSON text, with functions by name."""
        content = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, loss: Loss | None = None, metric: Metric | None = None) -> FinetuneConfig:
        """Return the configuration that `to_json` wrote; no code is looked up by name.

        Args:
            text: the text from `to_json`.
            loss: the function `loss`, where the configuration had one.
            metric: the function `metric`, where the configuration had one.

        Raises:
            DepthCompError: the text is not JSON, of another schema version, a field is unknown or out of range, or a
                function is missing.
        """
        try:
            content = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise DepthCompError(
                f"the configuration is not JSON ({error}); write it with FinetuneConfig.to_json"
            ) from error
        if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
            raise DepthCompError(
                f"the configuration is not of schema_version {SCHEMA_VERSION}; write it with FinetuneConfig.to_json"
            )
        unknown = sorted(content.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise DepthCompError(f"the configuration has the unknown field {unknown[0]!r}; check its spelling")
        for name, function in zip(_CALLABLES, (loss, metric), strict=True):
            named = content.get(name)
            if isinstance(named, dict) and function is None:
                raise DepthCompError(
                    f"the configuration names the function {named.get('function')}; pass it as {name}="
                )
            if function is not None:
                content[name] = function
        return cls(**content)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Return a value for JSON; a function becomes its name."""
    if not callable(value):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return {"function": f"{getattr(value, '__module__', type(value).__module__)}:{name}"}
