"""A small network with a block of each kind, and images for it."""

import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock

EXAMPLE = torch.zeros(1, 3, 32, 32)


def with_statistics(model):
    """Return a classifier in evaluation mode, its norms with random statistics and its scores far apart."""
    with torch.no_grad():
        model[-1].weight.mul_(10)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
    return model.eval()


def tiny_net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        InvertedResidual(8, 8, 1, 3), BasicBlock(8, 8), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    return with_statistics(model)


def images(count=32, seed=1):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def short_chain():
    """Return four convolutions in a row; compressions need few operators, and merging the two in the middle pays."""
    torch.manual_seed(0)
    sizes = [(3, 6, 3), (6, 24, 1), (24, 6, 1), (6, 8, 3)]
    layers = [layer for c_in, c_out, k in sizes for layer in (nn.Conv2d(c_in, c_out, k, padding=k // 2), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
