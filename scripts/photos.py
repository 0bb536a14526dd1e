"""The real photos that come inside scikit-image and scikit-learn, as crops normalised for a network.

Crops of one photo, and both pictures of the stereo pair, are always on one side of the split.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import skimage
import sklearn
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["CALIBRATION", "HELD_OUT", "crops"]

CALIBRATION = (
    "astronaut.png", "brick.png", "cell.png", "china.jpg", "clock_motion.png", "coins.png", "color.png", "flower.jpg",
    "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "logo.png", "microaneurysms.png",
    "page.png", "phantom.png", "retina.jpg", "text.png",
)  # fmt: skip
HELD_OUT = (
    "camera.png", "chelsea.png", "coffee.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
)  # fmt: skip


def crops(
    photos: Iterable[str | Path],
    per_photo: int,
    *,
    smallest: float,
    size: int,
    mean: float,
    std: float,
    seed: int,
    jitter: bool = False,
) -> Tensor:
    """Return random square crops, mirrored half of the time, photo after photo: (n, 3, size, size).

    Args:
        photos: names out of HELD_OUT or CALIBRATION, or paths of other photos.
        per_photo: crops of each.
        smallest: area of the smallest crop, relative to the photo's.
        size: height and width after resizing.
        mean: subtracted from pixels in 0..1.
        std: divides them then.
        seed: draws places, scales, mirroring and colours.
        jitter: whether brightness, contrast, saturation and hue vary too, which makes few photos go further.
    """
    cut = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(smallest, 1.0), ratio=(0.9, 1.1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1) if jitter else v2.Identity(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([mean] * 3, [std] * 3),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([cut(photo) for path in photos for photo in [_photo(path)] * per_photo])


def _photo(path: str | Path) -> Image.Image:
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images", Path())
    with Image.open(next(folder / path for folder in folders if (folder / path).exists())) as image:
        return image.convert("RGB")
