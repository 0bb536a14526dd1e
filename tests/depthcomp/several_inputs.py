"""Networks of several inputs, and data for them; the command line's tests import it as a user's module."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

COUNT, SIZE, WIDTH = 24, 10, 12


def trunk(channels=3):
    layers = []
    for inner, outer in ((channels, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Siamese(nn.Module):
    """One trunk on two images, and a head on how far apart they are."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(WIDTH, 3)

    def forward(self, left, right):
        return self.head((self.trunk(left) - self.trunk(right)).abs())


class WithVector(nn.Module):
    """An image, and what else is known of it."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(WIDTH + 5, 3)

    def forward(self, image, vector):
        return self.head(torch.cat([self.trunk(image), vector], 1))


class WithMask(nn.Module):
    """An image and a mask of booleans, as one more channel and as a factor."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(4), nn.Linear(WIDTH, 3)

    def forward(self, image, mask):
        mask = mask.float().unsqueeze(1)
        return self.head(self.trunk(torch.cat([image * mask, mask], 1)))


class ByKeyword(nn.Module):
    """Arguments and outputs as HuggingFace has them."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(WIDTH, 3)

    def forward(self, pixel_values=None, labels=None, mask=None):
        if mask is not None:
            pixel_values = pixel_values * mask[:, None]
        return {"logits": self.head(self.trunk(pixel_values))}


def with_statistics(model, *inputs):
    """Return a seeded model in evaluation mode whose norms have seen the inputs."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    with torch.no_grad():
        model.train()(*inputs)
    return model.eval()


def drawn(*shape, seed=0):
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(seed))


def images(seed=0):
    return drawn(3, SIZE, SIZE, seed=seed)


def mask():
    return drawn(SIZE, SIZE, seed=5) > -0.5


def siamese():
    return with_statistics(Siamese(), images(), images(1))


def with_vector():
    return with_statistics(WithVector(), images(), drawn(5, seed=2))


def with_mask():
    return with_statistics(WithMask(), images(), mask())


def by_keyword():
    return with_statistics(ByKeyword(), images())


def pairs():
    """A Dataset of two images, without labels."""
    return TensorDataset(images(), images(1))
