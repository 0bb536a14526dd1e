"""How the loss of a choice is found: by closed-form fits, or by a little training as the papers do.

compress_depth(model, "70%", data=loader, importance="kim23")
compress_depth(model, "70%", data=loader, importance=replace(KIM23, steps=200))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from depthcomp.errors import DepthCompError
from depthcomp.fitting.memory import MEMORY_MIB

__all__ = [
    "KIM23",
    "LAYERMERGE",
    "PRESETS",
    "CalibratedImportance",
    "FinetunedImportance",
    "ImportanceConfig",
]

Score = Literal["change", "normalized", "exponential"]


@dataclass(frozen=True, slots=True)
class CalibratedImportance:
    """Closed-form fits, no training: the rise of the loss on images that a fit has not seen.

    Attributes:
        memory_mib: most memory for the sums of fits and for solving them, in MiB, here and where the chosen plans are
            refitted; the images' tensors come on top. Where it is not enough for all sums at once, the images pass
            through the network several times, with the same result. A single fit may take a third of it. Where that
            is not enough, its kernel is a mixture of fewer patterns than it has pixels (`depthcomp.fitting.memory`),
            and `result.warnings` says of how many choices that is so. With images in three folds the default solves up
            to 2,896 unknowns whole: a 3x3 kernel over 320 channels has 2,880; over 512 channels there is room for 5
            patterns for its 9 pixels, and all 9 take 3,888 MiB. Memory grows with the square of the unknowns, time
            with the cube.
        images: of `data` that are read at most; None for 512, of images smaller than 224x224 for as many as have that
            many pixels together, up to 4,096.
    """

    memory_mib: int = MEMORY_MIB
    images: int | None = None

    def __post_init__(self) -> None:
        _require_counts(self, "memory_mib", *(() if self.images is None else ("images",)))


@dataclass(frozen=True, slots=True)
class FinetunedImportance:
    """Each choice alone is trained for some steps and scored on held-out images, as Kim et al. and LayerMerge do.

    With d the change of accuracy that a trained network has on held-out images, a choice is worth d; a network with
    one layer initialised anew and trained alike tells what that layer, kept, is worth. The loss of a choice is what
    its span's layers are worth, kept, less what it is worth. Where outputs are no class scores, d is the change of the
    (negative) divergence; where there are no labels, accuracy is agreement with the original network.

    Attributes:
        steps: of training, for each choice and each layer; the papers' one epoch is 5,000 of them.
        images: of `data` that are read at most.
        batch_size: images in a step.
        lr: the learning rate at the start; it falls to zero along a cosine.
        momentum: of SGD with Nesterov's momentum.
        weight_decay: of SGD.
        score: what a change d of accuracy is worth. "change": d itself, where kept layers are worth nothing and none is
            trained. "normalized" (Kim et al.): d less `alpha` times the mean over the single layers. "exponential"
            (LayerMerge): exp(d).
        alpha: of "normalized".
    """

    steps: int = 20
    images: int = 1024
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-5
    score: Score = "change"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _require_counts(self, "steps", "images", "batch_size")
        for name in ("lr", "momentum", "weight_decay", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise DepthCompError(f"{name} (={value!r}) of an importance must be a finite number from 0 on")
        if self.score not in get_args(Score):
            raise DepthCompError(
                f"score (={self.score!r}) of an importance must be one of {', '.join(get_args(Score))}"
            )


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise DepthCompError(f"{name} (={value!r}) of an importance must be a whole number from 1 on")


ImportanceConfig = CalibratedImportance | FinetunedImportance

KIM23 = FinetunedImportance(score="normalized", alpha=1.6)
"""Kim et al., ICML 2023: SGD with momentum 0.9 and weight decay 1e-5, accuracy on a held-out part of the training data,
single layers initialised anew, less 1.6 times their mean (their alpha for MobileNetV2-1.0; 1.2 and 1.4 for others).
Theirs is an epoch of ImageNet in batches of 256 from a learning rate of 0.1; here, steps that a CPU can bear."""

LAYERMERGE = FinetunedImportance(score="exponential")
"""LayerMerge, ICML 2024: the same training and score, and exp of the change of accuracy."""

PRESETS: Mapping[str, ImportanceConfig] = MappingProxyType(
    {"calibrated": CalibratedImportance(), "kim23": KIM23, "layermerge": LAYERMERGE}
)
