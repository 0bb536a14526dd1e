"""The networks that revisions are compared on, with their images; made alike whatever revision runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from demo import PIXELS, pretrained
from photos import CALIBRATION, HELD_OUT, crops
from torch import Tensor, nn

__all__ = ["NETWORKS", "Network"]

PHOTO_CROPS = 2  # of each photo; the demo takes eight times as many
SCORE_GAIN = 5.0  # of the classifier, whose random weights would tell the classes apart by almost nothing


@dataclass(frozen=True, slots=True)
class Network:
    """A network to compress, and its images.

    Attributes:
        build: returns the network without trained weights, or with them.
        size: height and width of the images.
        trained: whether the weights are trained; random ones get norms that fit the images.
    """

    build: Callable[[], nn.Module]
    size: int
    trained: bool = False

    def model(self) -> nn.Module:
        """Return the network in evaluation mode, the same weights at every call."""
        torch.manual_seed(0)
        model = self.build()
        return model.eval() if self.trained else _with_sane_norms(model, self.calibration())

    def calibration(self) -> Tensor:
        """Return crops as the demo calibrates on, (n, 3, size, size)."""
        return crops(CALIBRATION, PHOTO_CROPS, smallest=0.15, seed=0, jitter=True, **self._pixels)

    def held_out(self) -> Tensor:
        """Return crops of other photos, (n, 3, size, size)."""
        return crops(HELD_OUT, PHOTO_CROPS, smallest=0.5, seed=1, **self._pixels)

    @property
    def _pixels(self) -> dict[str, float]:
        return {**PIXELS, "size": self.size}


def _with_sane_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """Draw scales and shifts of all norms, and take their statistics from images; return the model, changed."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0  # the statistics of one batch
            norm.train()
        model(images)
        for norm in norms:
            norm.momentum = momentum
            norm.eval()
        [*(module for module in model.modules() if isinstance(module, nn.Linear))][-1].weight.mul_(SCORE_GAIN)
    return model


NETWORKS = {
    "timm:mobilenetv2_050": Network(lambda: timm.create_model("mobilenetv2_050"), 160),
    "torchvision:resnet18": Network(lambda: torchvision.models.resnet18(), 96),
    "demo": Network(pretrained, PIXELS["size"], trained=True),
}
