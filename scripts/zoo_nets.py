"""The networks of the zoo: which they are, how to build one with random weights, and how small an image it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

SIZES = (64, 96, 128, 160, 224, 256)  # a network is swept at the first of these that it takes
VIT_PATCHES = 7  # along a side: torchvision's ViTs are built for one size
LARGE, LARGE_SIZE = 300_000_000, 128  # a timm network of one size and of more weights is built for a smaller size
LEAST_CONVOLUTIONS, LEAST_NORMS = 5, 3  # of a timm model; fewer make no convolutional network


@dataclass(frozen=True, slots=True)
class Net:
    """One network: the library that builds it, its name there, its weights, and the size that it is made for."""

    library: str
    name: str
    parameters: int
    size: int
    fixed: bool = False

    @property
    def key(self) -> str:
        """The name under which results are kept."""
        return f"{self.library}:{self.name}"

    def build(self) -> nn.Module:
        """Return the network in evaluation mode, with seeded random weights and statistics of its norms."""
        torch.manual_seed(0)
        model = _build(self.library, self.name, **self._smaller()).eval()
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                _randomise(module, generator)
        return model

    def _smaller(self) -> dict[str, Any]:
        made_for = self.library == "timm" and self.fixed and self.parameters > LARGE
        return {"img_size": self.size} if made_for else {}

    def images(self, model: nn.Module, seed: int) -> Tensor:
        """Return one random image of the smallest size that the network takes, (1, 3, size, size)."""
        smaller = [] if self.fixed else [size for size in SIZES if size < self.size]
        for size in (*smaller, self.size):
            x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
            if size == self.size or _takes(model, x):
                return x
        raise AssertionError("the last size is returned whether it fits or not")


def torchvision_nets() -> Iterator[Net]:
    """Yield every classification model of torchvision that has a convolution."""
    for name in torchvision.models.list_models(module=torchvision.models):
        model = _skeleton("torchvision", name)
        if any(isinstance(module, nn.Conv2d) for module in model.modules()):
            size = getattr(model, "image_size", 224)
            yield Net("torchvision", name, _weights(model), size, fixed=name.startswith(("vit_", "maxvit")))


def timm_nets() -> Iterator[Net]:
    """Yield the first model of each timm family (its name up to the first digit) that is convolutional enough."""
    first: dict[str, str] = {}
    for name in timm.list_models():
        first.setdefault(re.split(r"\d", name)[0], name)
    for name in first.values():
        model = _skeleton("timm", name)
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if convolutions >= LEAST_CONVOLUTIONS and norms >= LEAST_NORMS:
            made_for = model.pretrained_cfg
            size, fixed = made_for["input_size"][-1], bool(made_for.get("fixed_input_size"))
            weights = _weights(model)
            yield Net("timm", name, weights, LARGE_SIZE if fixed and weights > LARGE else size, fixed)


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _build(library: str, name: str, **options: Any) -> nn.Module:
    if library == "timm":
        return timm.create_model(name, pretrained=False, **options)
    return torchvision.models.get_model(name, weights=None, **_options(name))


def _options(name: str) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": VIT_PATCHES * int(name.rpartition("_")[2])}
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs takes a minute


def _skeleton(library: str, name: str) -> nn.Module:
    """Return the network without weights where it can be built so, as only its modules are looked at."""
    try:
        with torch.device("meta"):
            return _build(library, name)
    except NotImplementedError:  # it computes with its weights while it is built
        return _build(library, name)


def _randomise(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)


def _takes(model: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(x)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    return True
