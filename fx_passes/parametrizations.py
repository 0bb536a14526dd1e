"""Removal of torch parametrizations (weight or spectral normalisation): computed weights become plain."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["remove_parametrizations"]


def remove_parametrizations(model: nn.Module) -> None:
    """Turn the computed weight of each parametrized layer into a plain parameter, in place.

    Copies of `model` stay parametrized, unlike with torch's function of this name: copies of a parametrized layer
    share a class, and that function edits the class.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            computed = {name: _computed(module, name) for name in _parametrized(module)}
            module.__class__ = type(module).__bases__[0]  # what torch derived the parametrized class from
            del module.parametrizations
            for name, parameter in computed.items():
                module.register_parameter(name, parameter)


def _computed(module: nn.Module, name: str) -> nn.Parameter:
    parts = module.get_submodule(f"parametrizations.{name}").parameters()
    return nn.Parameter(getattr(module, name).detach().clone(), any(part.requires_grad for part in parts))


def _parametrized(module: nn.Module) -> list[str]:
    return [name for name, _ in module.get_submodule("parametrizations").named_children()]
