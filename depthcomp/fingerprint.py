"""Fingerprints, short texts that are equal for equal networks, images and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

__all__ = ["fingerprint", "network_hash", "seed_of"]

_PLAIN = (bool, int, float, bytes, type(None))


def network_hash(network: nn.Module) -> str:
    """Return a hash of a network's function: types and settings of its modules, and all its tensors."""
    modules = [(name, type(module).__qualname__, _settings(module)) for name, module in network.named_modules()]
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return fingerprint(modules, sorted(dict(tensors).items()))


def _settings(module: nn.Module) -> Any:
    """Return the public attributes of a layer, for example its padding; of a graph, its operations."""
    if isinstance(module, fx.GraphModule):
        return str(module.graph)
    attributes = vars(module).items()
    return sorted((name, value) for name, value in attributes if not name.startswith("_") and name != "training")


def seed_of(*parts: Any) -> int:
    """Return a seed that depends only on these texts and numbers."""
    return int(fingerprint(*map(str, parts))[:15], 16)


def fingerprint(*parts: Any) -> str:
    """Return 32 hexadecimal digits that depend on all texts, numbers and tensors in `parts`, and on their order.

    Values of other types count by their type only.
    """
    digest = hashlib.sha256()
    for leaf in tree_leaves(parts):
        for piece in _pieces(leaf):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()[:32]


def _pieces(leaf: Any) -> Iterator[bytes | memoryview]:
    if isinstance(leaf, Tensor):
        yield f"{leaf.dtype} {tuple(leaf.shape)}".encode()
        yield leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(leaf, str):
        yield leaf.encode()
    else:
        yield f"{type(leaf).__name__} {leaf!r}".encode() if isinstance(leaf, _PLAIN) else type(leaf).__name__.encode()
