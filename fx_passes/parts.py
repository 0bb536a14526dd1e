"""Suggestion of a part to capture where a whole network cannot be traced."""

from __future__ import annotations

from torch import fx, nn

from fx_passes.spatial_layers import CONVOLUTIONS

__all__ = ["suggest_part"]


def suggest_part(model: nn.Module) -> str:
    """Return a clause that names the traceable part with the most convolutions; empty where there is none.

    Example:
        >>> net = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 8, 3)), "head": nn.Linear(8, 2)})
        >>> suggest_part(net)
        ', or capture the part model.backbone, which holds 1 of its 1 convolutions'
    """
    total = _convolutions(model)
    parts = sorted(model.named_children(), key=lambda part: -_convolutions(part[1]))
    for name, part in parts:
        if _convolutions(part) and not name.isdigit() and _is_traceable(part):
            return f", or capture the part model.{name}, which holds {_convolutions(part)} of its {total} convolutions"
    return ""


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, CONVOLUTIONS) for part in module.modules())


def _is_traceable(module: nn.Module) -> bool:
    try:
        fx.Tracer().trace(module)
    except Exception:  # whatever a forward raises when it is given no tensors
        return False
    return True
