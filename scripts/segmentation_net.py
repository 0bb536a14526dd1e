"""A small segmentation network: which garment each pixel of a picture of four shows, from Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from fashion_data import MEAN, STD, Part
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["pictures", "trained_segmentation"]

CLASSES = 11  # ten garments, and the background
DARK = 0.1  # pixels in 0..1 below are background
EPOCHS, BATCH, LEARNING_RATE = 3, 64, 2e-3


class _Segmentation(nn.Module):
    """An encoder to a quarter of the resolution, a decoder with one skip, and scores (n, classes, h, w)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(1, width, stride=2), _layer(width, width))
        self.middle = nn.Sequential(_layer(width, 2 * width, stride=2), *(_layer(2 * width, 2 * width) for _ in "abc"))
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.decoder = nn.Sequential(*(_layer(width, width) for _ in "abc"))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        deep = self.narrow(self.middle(skip))
        found = self.decoder(skip + F.interpolate(deep, scale_factor=2.0, mode="nearest"))
        return F.interpolate(self.head(found), scale_factor=2.0, mode="bilinear")


def _layer(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def pictures(part: Part, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures (n, 1, 56, 56) of four garments each, and the class of each pixel (n, 56, 56)."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    fours = order[: len(order) // 4 * 4].reshape(-1, 2, 2)
    images = part.images[fours]  # (n, 2, 2, 1, 28, 28)
    whole = images.permute(0, 3, 1, 4, 2, 5).reshape(len(fours), 1, 56, 56)
    classes = part.labels[fours].repeat_interleave(28, 1).repeat_interleave(28, 2)
    return whole, torch.where(whole[:, 0] * STD + MEAN > DARK, classes + 1, 0)


def trained_segmentation(part: Part, cache: Path) -> nn.Module:
    """Return the network in evaluation mode, trained on a part now where the cache does not hold it."""
    weights, model = cache / "segmentation.safetensors", _Segmentation()
    if not weights.exists():
        torch.manual_seed(0)
        model = _Segmentation()
        _train(model, part)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), weights)
    model.load_state_dict(load_file(weights))
    return model.eval()


def _train(model: nn.Module, part: Part) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * -(-(len(part) // 4) // BATCH)
    )
    for epoch in range(EPOCHS):
        images, classes = pictures(part, epoch)
        for x, y in zip(images.split(BATCH), classes.split(BATCH), strict=True):
            scores = model(x)
            loss = F.cross_entropy(scores, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        right = (scores.argmax(1) == y).float().mean()
        print(
            f"segmentation, epoch {epoch + 1}: loss {loss.item():.3f}, {float(right):.1%} of pixels right", flush=True
        )
