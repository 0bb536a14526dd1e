"""Real photos that come inside scikit-image and scikit-learn, as crops normalised for a network.

Calibration and held-out photos never overlap; both pictures of the stereo pair are on one side. Crops differ in
place, scale and mirroring, and depend on the seed alone.
"""

from __future__ import annotations

import numpy as np
import skimage.data
import skimage.io
import torch
from pathlib import Path
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "china.jpg", "clock_motion.png", "coffee.png",
    "coins.png", "color.png", "flower.jpg", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png",
    "logo.png", "microaneurysms.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "phantom.png",
    "retina.jpg", "rocket.jpg", "text.png",
)
