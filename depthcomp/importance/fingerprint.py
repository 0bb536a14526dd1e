"""What a computed value depends on, as one short text: equal texts mean equal networks, images and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet

__all__ = ["calibration_hash", "fingerprint", "network_hash", "seed_of"]


def network_hash(gm: fx.GraphModule) -> str:
    """Return the hash of a network: its operations, and every parameter and buffer by name, type and bytes."""
    tensors = [item for name, tensor in sorted(gm.state_dict().items()) for item in (name, tensor)]
    return fingerprint(str(gm.graph), *tensors)


def calibration_hash(calibration: CalibrationSet) -> str:
    """Return the hash of images in their folds, with their labels where they have some."""
    roles = [calibration.folds, calibration.judges, calibration.withheld]
    return fingerprint(json.dumps(roles), *calibration.batches, *(calibration.labels or ()))


def seed_of(*parts: Any) -> int:
    """Return a seed that depends on these texts and numbers alone, not on what else is drawn."""
    return int(fingerprint(*map(str, parts))[:15], 16)


def fingerprint(*parts: str | Tensor) -> str:
    """Return 32 hexadecimal digits that depend on every bit of these texts and tensors, and on their order."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()[:32]


def _pieces(part: str | Tensor) -> Iterable[bytes | memoryview]:
    if isinstance(part, str):
        return (part.encode(),)
    raw = part.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{part.dtype} {tuple(part.shape)}".encode(), raw.numpy().tobytes()
