"""Pictures of simple shapes with their boxes, drawn from a seed into a folder as ultralytics reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["CLASSES", "PARTS", "SIZE", "draw_shapes", "pictures"]

CLASSES = ("circle", "square", "triangle", "star")
PARTS = {"train": 1200, "val": 200, "test": 400}
"""Pictures of each part; nothing is trained, chosen or calibrated on `test`."""
SIZE = 160  # pixels
_MOST = 6  # shapes in a picture
_RADII = (8, 32)  # pixels
_APART = 0.8  # of the sum of two radii: shapes may overlap a little
_TRIES = 20
_LEAST_CONTRAST = 60  # of 255, summed over the colours
_NOISE = 8.0  # of 255

Point = tuple[float, float]


def draw_shapes(folder: Path, seed: int = 0) -> Path:
    """Draw the parts that are not there, and return the path of the data set's description for ultralytics."""
    for number, (part, count) in enumerate(PARTS.items()):
        if not (folder / "labels" / part / f"{count - 1:04d}.txt").exists():
            _draw_part(folder, part, count, np.random.default_rng((seed, number)))
    paths = {part: f"images/{part}" for part in PARTS}
    description = folder / "shapes.yaml"  # JSON is YAML
    description.write_text(json.dumps({"path": str(folder.resolve()), **paths, "names": CLASSES}))
    return description


def pictures(folder: Path, part: str) -> list[Path]:
    """Return the pictures of a part, in order."""
    return sorted((folder / "images" / part).glob("*.png"))


def _draw_part(folder: Path, part: str, count: int, rng: np.random.Generator) -> None:
    images, labels = folder / "images" / part, folder / "labels" / part
    for place in (images, labels):
        place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, lines = _picture(rng)
        picture.save(images / f"{number:04d}.png")
        (labels / f"{number:04d}.txt").write_text("\n".join(lines) + "\n")


def _picture(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Return a picture and a line for each shape: its class and its box, centre and size as shares of the picture."""
    background = _background(rng)
    picture, lines = Image.fromarray(background.astype(np.uint8)), list[str]()
    draw, middle = ImageDraw.Draw(picture), background.mean((0, 1))
    for x, y, radius in _places(rng):
        kind = int(rng.integers(len(CLASSES)))
        corners = _corners(CLASSES[kind], x, y, radius, rng)
        draw.polygon(corners, fill=_colour(rng, middle))
        lines.append(f"{kind} " + " ".join(f"{value:.6f}" for value in _box(corners)))
    noisy = np.asarray(picture) + rng.normal(0, _NOISE, background.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), lines


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return a gradient between two similar colours, (SIZE, SIZE, 3)."""
    colour, change = rng.uniform(0, 255, 3), rng.uniform(-60, 60, (2, 3))
    steps = np.linspace(-0.5, 0.5, SIZE)
    rows, columns = steps[:, None, None] * change[0], steps[None, :, None] * change[1]
    background: np.ndarray = (colour + rows + columns).clip(0, 255)
    return background


def _places(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Return centres and radii of shapes that lie within the picture and hardly overlap."""
    found: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        for _ in range(_TRIES):
            radius = float(np.exp(rng.uniform(*np.log(_RADII))))
            x, y = (float(each) for each in rng.uniform(radius, SIZE - radius, 2))
            if all(math.dist((x, y), (a, b)) > _APART * (radius + r) for a, b, r in found):
                found.append((x, y, radius))
                break
    return found


def _corners(name: str, x: float, y: float, radius: float, rng: np.random.Generator) -> list[Point]:
    """Return the corners of a shape that is turned at random."""
    lengths: Sequence[float] = {
        "circle": [1.0] * 40, "square": [1.0] * 4, "triangle": [1.0] * 3, "star": [1.0, 0.4] * 5
    }[name]  # fmt: skip
    turn = rng.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * k / len(lengths) for k in range(len(lengths))]
    return [
        (x + radius * length * math.cos(angle), y + radius * length * math.sin(angle))
        for length, angle in zip(lengths, angles, strict=True)
    ]


def _colour(rng: np.random.Generator, background: np.ndarray) -> tuple[int, ...]:
    """Return a colour that stands out from the background."""
    while True:
        colour = rng.integers(0, 256, 3)
        if np.abs(colour - background).sum() > _LEAST_CONTRAST:
            return tuple(int(value) for value in colour)


def _box(corners: Sequence[Point]) -> list[float]:
    """Return centre and size of the box around corners, as shares of the picture."""
    low, high = np.min(corners, 0) / SIZE, np.max(corners, 0) / SIZE
    return [*((low + high) / 2), *(high - low)]
