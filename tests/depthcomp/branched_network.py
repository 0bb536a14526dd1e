"""A small network with branches, and images for it."""

import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual


class Branched(nn.Module):
    """A stem, a strided convolution, an inverted residual, a block with a projection; class scores."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.inverted = InvertedResidual(6, 6, 1, 2)
        self.down, self.act = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
        self.long = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, padding=1))
        self.short = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 7)

    def forward(self, x):
        x = self.act(self.down(self.inverted(self.stem(x))))
        x = self.long(x) + self.short(x)
        return self.head(x.mean((2, 3)))


def images(count=6, size=12, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
