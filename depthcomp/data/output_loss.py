"""Loss of a changed network's outputs against the original's on the same images.

Class scores are compared by their divergence. Other outputs are compared by squared errors, each channel in its own
units: a detector may return boxes in hundreds of pixels beside probabilities.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from depthcomp.data.inputs import Inputs
from depthcomp.data.output_spreads import floats_of, spread_of
from depthcomp.errors import DataError, DepthCompError
from depthcomp_errors.first_line import first_line
from fx_passes.outputs import tensors_of

__all__ = [
    "DEFAULT_LOSS", "OutputKind", "OutputLoss", "OwnLoss", "divergence", "is_scores", "require_finite",
]  # fmt: skip

OutputKind = Literal["scores", "values"]
OwnLoss = Callable[[Any, Any, Any], float]
"""A function (original_outputs, outputs, batch) -> loss; a batch is images, or (images, labels).

In the place of images several inputs are a tuple.
"""


@dataclass(frozen=True, slots=True)
class OutputLoss:
    """Loss of a changed network's outputs.

    Attributes:
        outputs: "scores" of classes, or "values"; None decides by the shape, (n, classes).
        spreads: the variance of each floating-point output tensor's channels, as `spreads_of` returns them; None takes
            those of the outputs that are compared.
        own: the user's function in place of the divergence, or None.
        behind: whether outputs are pairs of what the network returns and the real values behind it.
    """

    outputs: OutputKind | None = None
    spreads: tuple[Tensor, ...] | None = None
    own: OwnLoss | None = None
    behind: bool = False

    @classmethod
    def asked(cls, outputs: OutputKind | None, own: OwnLoss | None) -> OutputLoss:
        """Return the loss that a user asks for.

        Raises:
            DepthCompError: the kind of outputs is unknown, or the loss is no function.
        """
        if outputs is not None and outputs not in get_args(OutputKind):
            raise DepthCompError(f"outputs (={outputs!r}) must be 'scores', 'values' or None")
        if own is not None and not callable(own):
            raise DepthCompError(
                f"loss (={own!r:.40}) must be a function (original_outputs, outputs, batch) -> number, or None"
            )
        return cls(outputs, own=own)

    def are_scores(self, output: Any) -> bool:
        """Say whether an output is compared as class scores."""
        return self.outputs != "values" and is_scores(output)

    def divergence(self, original: Any, changed: Any) -> Tensor:
        """Return the divergence of output `changed` from output `original`, differentiable, in float64, ().

        For one tensor of class scores (n, classes) it is the mean KL(softmax original || softmax changed) in nats. For
        other outputs it is the mean squared error relative to the variance of each channel, averaged over tensors.
        """
        wanted, found = floats_of(original), floats_of(changed)
        if self._is_one_of_scores(wanted):
            scores, other = (F.log_softmax(t.double(), dim=1) for (t,) in (wanted, found))
            return F.kl_div(other, scores, log_target=True, reduction="batchmean")
        pairs = zip(wanted, found, self.variances(original), strict=True)
        errors = [((a - b).square() / variance).mean() for a, b, variance in pairs]
        return torch.stack(errors).mean() if errors else torch.zeros(())

    def variances(self, original: Any) -> list[Tensor]:
        """Return the variances that squared errors of outputs are divided by, one tensor for each output tensor."""
        parts = floats_of(original)
        if self.spreads is None:
            return [spread_of(part) for part in parts]
        return [spread.to(part) for spread, part in zip(self.spreads, parts, strict=True)]

    def rise(self, original: Any, changed: Any, images: Tensor | Inputs, labels: Tensor | None) -> float:
        """Return the rise of the loss from the original's outputs to the changed network's on the same images.

        Without labels it is the divergence. With labels (n,) of class scores it is the mean of the divergence and the
        rise of the cross-entropy. Both estimate one quantity where the original is well calibrated: the divergence has
        less noise on few images, the labels correct the original's errors. A user's function is taken as it is.

        Raises:
            DepthCompError: the user's function fails, or returns no number.
        """
        if self.own is not None:
            held = Inputs.of(images).held
            batch = held if labels is None else (held, labels)
            original, changed = (outputs[0] if self.behind else outputs for outputs in (original, changed))
            before, after = (_called(self.own, original, outputs, batch) for outputs in (original, changed))
            return after - before
        gap = float(self.divergence(original, changed))
        if labels is None:
            return gap
        before, after = (float(F.cross_entropy(s.double(), labels.to(s.device))) for s in (original, changed))
        return (gap + after - before) / 2

    def probes(self, output: Any, images: int, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield scalars whose gradients g at a tensor give the divergence as the mean of <g, d>^2 over images."""
        parts = floats_of(output)
        if self._is_one_of_scores(parts):
            root = parts[0].detach().softmax(1).sqrt()
            for _ in range(draws):
                noise = root * _signs(parts[0], generator)
                direction = noise - root.square() * noise.sum(1, keepdim=True)
                yield (direction * parts[0]).sum() / math.sqrt(2)
            return
        scales = [
            (len(parts) * part.numel() / images * variance).rsqrt()
            for part, variance in zip(parts, self.variances(output), strict=True)
        ]
        for _ in range(draws):
            noises = [_signs(part, generator) for part in parts]
            products = [(part * z * scale).sum() for part, z, scale in zip(parts, noises, scales, strict=True)]
            yield torch.stack(products).sum() if products else torch.zeros(())

    def flattens(self, output: Any) -> bool:
        """Say whether the divergence of large changes of an output grows like the change, not like its square."""
        return self._is_one_of_scores(floats_of(output))

    def describe(self, output: Any) -> str:
        """Return in words what the loss of a network with this output is."""
        if self.own is not None:
            return f"the function {getattr(self.own, '__qualname__', type(self.own).__name__)}"
        parts = floats_of(output)
        if self._is_one_of_scores(parts):
            return f"divergence of the scores of {parts[0].shape[1]} classes, in nats"
        of = "" if len(parts) == 1 else f" of {len(parts)} tensors"
        return f"squared errors{of}, relative to the variance of each channel"

    def rules(self) -> list[str]:
        """Return texts to hash the loss by, for resumed runs; none for the divergence of class scores."""
        own = [] if self.own is None else [str(self.outputs), *_text_of(self.own)]
        return [*own, *([] if self.spreads is None else [f"{self.outputs}, channels in their own units"])]

    def _is_one_of_scores(self, parts: Sequence[Tensor]) -> bool:
        return len(parts) == 1 and self.are_scores(parts[0])


DEFAULT_LOSS = OutputLoss()
"""The loss where nothing is known of the outputs."""


def divergence(original: Any, changed: Any) -> float:
    """Return the divergence of an output from the original's where nothing more is known, as `OutputLoss` does."""
    return float(DEFAULT_LOSS.divergence(original, changed))


def is_scores(output: Any) -> bool:
    """Return whether an output has the shape of class scores, (n, classes)."""
    return isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1


def require_finite(output: Any) -> None:
    """Refuse an original network whose own output is not finite.

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not all(bool(part.isfinite().all()) for part in tensors_of(output)):
        raise DataError(
            "the network's own output on the calibration images is NaN or infinite; check the network's weights, and "
            "normalise the images as for training"
        )


def _called(own: OwnLoss, original: Any, outputs: Any, batch: Any) -> float:
    """Call the user's function and return its number.

    Raises:
        DepthCompError: the function fails, or returns no number.
    """
    try:
        return float(own(original, outputs, batch))
    except Exception as error:
        raise DepthCompError(
            f"the function loss failed on the calibration images ({type(error).__name__}: {first_line(error)}); it is "
            "called with the original's outputs, the changed network's outputs, and the images or (images, labels), "
            "and must return one number"
        ) from error


def _text_of(function: OwnLoss) -> list[str]:
    """Return texts that are equal only for functions with equal code and values; of other callables, unique ones."""
    if not isinstance(function, FunctionType):
        return [str(uuid.uuid4())]
    closed = [cell.cell_contents for cell in function.__closure__ or ()]
    return [*_text_of_code(function.__code__), repr(function.__defaults__), repr(function.__kwdefaults__), repr(closed)]


def _text_of_code(code: CodeType) -> list[str]:
    parts = [_text_of_code(value) if isinstance(value, CodeType) else [repr(value)] for value in code.co_consts]
    return [code.co_code.hex(), repr(code.co_names), *(text for part in parts for text in part)]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent random signs in the shape of a tensor."""
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
