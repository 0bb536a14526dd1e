"""Networks that the importances are compared on, each with trained weights, real images and a latency table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from demo import PIXELS, pretrained
from fashion_data import Parts, fashion_mnist
from fashion_nets import Recipe, trained
from photos import CALIBRATION, crops
from revisions.arithmetic_backend import ArithmeticBackend
from segmentation_net import pictures, trained_segmentation
from torch import Tensor, nn

from depthcomp.methods.candidates import operators_of
from depthcomp.preparation import Prepared
from latency_tables import LatencyTable, measure

__all__ = ["CASES", "Case", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the data are, and how many images to take.

    Attributes:
        images: number of images.
        seed: seed of their choice.
        data: folder of Fashion-MNIST.
        cache: folder of networks trained on it.
    """

    images: int
    seed: int
    data: Path
    cache: Path

    def parts(self) -> Parts:
        """Return Fashion-MNIST."""
        return fashion_mnist(self.data)

    def chosen(self, count: int) -> Tensor:
        """Return the indices of the images among `count`."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.images]


@dataclass(frozen=True, slots=True)
class Case:
    """A network to compare importances on.

    Attributes:
        model: returns the network in evaluation mode.
        data: returns the images, and their labels where it has any.
        table: returns latencies for a prepared network.
    """

    model: Callable[[Source], nn.Module]
    data: Callable[[Source], Any]
    table: Callable[[Prepared], LatencyTable]


def _shipped(prepared: Prepared) -> LatencyTable:
    """Return the table that depthcomp ships for ONNX Runtime."""
    return LatencyTable.load(str(files("latency_tables") / "data" / "onnxruntime_epyc.json"))


def _counted(prepared: Prepared) -> LatencyTable:
    """Return latencies that follow from the shapes of the operators."""
    return measure(sorted(operators_of(prepared)), ArithmeticBackend())


def _photos(source: Source) -> Tensor:
    per_photo = -(-source.images // len(CALIBRATION))
    found: Tensor = crops(CALIBRATION, per_photo, smallest=0.15, seed=source.seed, jitter=True, **PIXELS)
    return found[: source.images]


def _garments(source: Source, *, labels: bool) -> Any:
    part = source.parts().validation
    chosen = source.chosen(len(part))
    return [(part.images[chosen], part.labels[chosen])] if labels else [part.images[chosen]]


def _pictures(source: Source) -> Any:
    images, _ = pictures(source.parts().validation, source.seed)
    return [images[: source.images]]


def _resnet(source: Source) -> nn.Module:
    return trained("resnet", source.parts(), source.cache, Recipe(epochs=12))


CASES = {
    "efficientnet_lite0": Case(lambda source: pretrained(), _photos, _shipped),
    "resnet": Case(_resnet, lambda source: _garments(source, labels=False), _counted),
    "resnet, labels": Case(_resnet, lambda source: _garments(source, labels=True), _counted),
    "segmentation": Case(
        lambda source: trained_segmentation(source.parts().train, source.cache), _pictures, _counted
    ),
}  # fmt: skip
