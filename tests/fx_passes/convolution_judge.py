"""Judge of whether a function computes one convolution, by its answers alone."""

import math

import torch
import torch.nn.functional as F
from random_nets import LARGEST_STRIDE


def is_convolution(function, shape, least=64, patch=4):
    """Say by numbers alone whether `function` of images is one convolution away from the border.

    `shape` (channels, height, width) is what it was captured with; larger images, of the same remainder by every
    stride, are judged.

    It must be affine, have a bias that does not depend on the place, answer a patch in the middle only near the
    middle, and move its answer by one pixel when the patch moves by some number of pixels: its stride.
    """
    large = shape[0], least + shape[1] % LARGEST_STRIDE, least + shape[2] % LARGEST_STRIDE
    try:
        nothing = function(_noise(large, 0) * 0)
        one, other = _noise(large, 1), _noise(large, 2)
        linear = function(one + other) + nothing, function(one) + function(other)
    except RuntimeError:
        return False  # at another size its branches do not fit together
    if nothing.dim() != 4 or not _same(*linear):
        return False
    middle = (slice(None), slice(None), *(slice(n // 2 - 1, n // 2 + 2) for n in nothing.shape[2:]))
    if not _same(nothing[middle], nothing[middle][:, :, :1, :1].expand_as(nothing[middle])):
        return False
    spot = torch.zeros(1, *large, dtype=torch.float64)
    centre = slice((least - patch) // 2, (least + patch) // 2)
    spot[:, :, centre, centre] = _noise((shape[0], patch, patch), 3)
    answer = function(spot) - nothing
    frame = answer.clone()
    frame[:, :, 2:-2, 2:-2] = 0
    return _same(frame, frame * 0, answer.abs().max()) and all(
        any(
            _same(function(spot.roll(step, axis)) - nothing, answer.roll(1, axis))
            for step in range(1, LARGEST_STRIDE + 1)
        )
        for axis in (2, 3)
    )


def is_convolution_to_the_border(function, channels, sizes=(12, 13, 14, 15), margin=12):
    """Say whether `function` is one convolution of the image with zeros around it, at every pixel and size.

    The margin is a multiple of every stride up to 4, so that adding it moves no pixel against the grid.
    """
    for size in sizes:
        x = _noise((channels, size, size), 4)
        try:
            inner, outer = function(x), function(F.pad(x, (margin,) * 4))
        except RuntimeError:
            return False
        stride = next((s for s in (1, 2, 3, 4) if outer.shape[2] - inner.shape[2] == 2 * margin // s), None)
        if stride is None:
            return False
        start = margin // stride
        window = outer[:, :, start : start + inner.shape[2], start : start + inner.shape[3]]
        if window.shape != inner.shape or not _same(window, inner):
            return False
    return is_convolution(function, (channels, *sizes[:2]))


def _noise(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator, dtype=torch.float64)


def _same(a, b, scale=None):
    scale = max(float(a.abs().max()), float(b.abs().max())) if scale is None else float(scale)
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-8 * max(scale, 1e-9)) and math.isfinite(scale)
