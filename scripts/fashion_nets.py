"""The two networks of the accuracy benchmark, trained from scratch on Fashion-MNIST and kept as safetensors."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from fashion_data import Batches, Part, Parts
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torchvision.models import MobileNetV2
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, ResNet

__all__ = ["NETS", "Recipe", "accuracy", "trained"]

CLASSES = 10
BATCH = 128
EVALUATED = 500  # images at a time
PUBLISHED = Path(__file__).parent / "fashion_weights"
HALF = [  # expansion, channels at full width, blocks, stride: MobileNetV2's, with strides for images of 28 x 28
    [1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 1], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained from scratch: SGD, one warm-up epoch, cosine, label smoothing, averaged weights."""

    epochs: int = 10
    lr: float = 0.15
    weight_decay: float = 4e-4
    smoothing: float = 0.05
    average: float = 0.998
    seed: int = 0


class _SmallResNet(ResNet):
    """ResNet-18 at a quarter of its width, its strides fit for images of 28 x 28."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=CLASSES)
        self.inplanes = width
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        for index, stride in enumerate((2, 2, 2, 1)):
            layer = self._make_layer(BasicBlock, width * 2**index, 2, stride)
            setattr(self, f"layer{index + 1}", layer)
        self.fc = nn.Linear(width * 8, CLASSES)


def _mobilenetv2() -> nn.Module:
    """Return MobileNetV2 of width 0.5 for images (n, 1, 28, 28)."""
    model = MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=HALF, dropout=0.0)
    model.features[0][0] = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    return model


def _tiny() -> nn.Module:
    """Return a network that takes no time, with a block of each kind."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        InvertedResidual(8, 8, 1, 4), BasicBlock(8, 8), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {"mobilenetv2": _mobilenetv2, "resnet": _SmallResNet, "tiny": _tiny}


def accuracy(model: nn.Module, part: Part) -> float:
    """Return the share of images whose most likely class is right; the model is left in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
            for images, labels in zip(part.images.split(EVALUATED), part.labels.split(EVALUATED), strict=True)
        )
    return right / len(part)


def trained(name: str, parts: Parts, cache: Path, recipe: Recipe) -> nn.Module:
    """Return a network in evaluation mode, trained now where neither the cache nor PUBLISHED holds it.

    Training rounds differently on each machine, so rows of one table start from the same published networks.

    Args:
        name: one of NETS.
        parts: the data; the last weights are taken, so validation only reports.
        cache: the folder of NAME.safetensors and NAME.json.
        recipe: how to train; a cached network of another recipe or number of images is trained anew.
    """
    made_by = {"recipe": asdict(recipe), "images": len(parts.train)}
    folder = next((each for each in (cache, PUBLISHED) if _holds(each, name, made_by)), cache)
    weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not _holds(folder, name, made_by):
        start = time.perf_counter()
        torch.manual_seed(recipe.seed)
        averaged = _train(NETS[name](), parts, recipe)
        cache.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in averaged.state_dict().items()}, weights)
        found = {"validation": accuracy(averaged, parts.validation), "seconds": round(time.perf_counter() - start)}
        record.write_text(json.dumps({"made_by": made_by, **found}, indent=2) + "\n")
    model = NETS[name]()
    model.load_state_dict(load_file(weights))
    return model.eval()


def _holds(folder: Path, name: str, made_by: dict[str, object]) -> bool:
    """Say whether a folder holds a network that was made in this way."""
    record = folder / f"{name}.json"
    return record.exists() and json.loads(record.read_text())["made_by"] == made_by


def _train(model: nn.Module, parts: Parts, recipe: Recipe) -> nn.Module:
    """Train a model in place and return its averaged copy."""
    model.to(memory_format=torch.channels_last)
    batches = Batches(parts.train, BATCH, recipe.seed)
    groups = param_groups_weight_decay(model, recipe.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    steps = len(batches) * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, len(batches), steps))
    averaged = ModelEmaV3(model, decay=recipe.average, use_warmup=True)
    for epoch in range(recipe.epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for step, (images, labels) in enumerate(batches):
            scores = model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores, labels, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update(model, step=epoch * len(batches) + step)
            total += loss.item()
        found = accuracy(averaged.module, parts.validation)
        told = f"loss {total / len(batches):.3f}, validation {found:.2%}, {time.perf_counter() - start:.0f} s"
        print(f"epoch {epoch + 1}/{recipe.epochs}: {told}", flush=True)
    return averaged.module


def _share(step: int, warm_up: int, steps: int) -> float:
    """Return the learning rate of a step, relative to the highest: a line up, then half a cosine down to zero."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
