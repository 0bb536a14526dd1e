"""A small network with a tensor that two convolutions read."""

import torch
from torch import nn

__all__ = ["TwoConsumers"]


class TwoConsumers(nn.Module):
    """A chain whose end is read by both summands of a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU()
        self.one, self.two, self.head = nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 3, padding=1), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.middle(self.act(self.stem(x))))
        return self.head((self.act(self.one(x)) + self.two(x)).mean((2, 3)))
