"""Checks before a capture: the model is a bare nn.Module with finite weights, its example inputs are tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from depthcomp_errors import CaptureError

__all__ = ["as_tensors", "require_capturable"]

_QUANTISED = tuple(
    f"torch.ao.{room}"
    for room in (
        "quantization.observer", "quantization.fake_quantize", "nn.qat", "nn.intrinsic.qat", "nn.intrinsic.quantized",
        "nn.quantized.dynamic", "nn.quantized.modules.conv", "nn.quantized.modules.linear",
    )
)  # fmt: skip
"""Homes of layers prepared for quantisation or quantised; stubs and FloatFunctional live elsewhere."""
_STATISTICS = ("running_mean", "running_var")  # buffers of every kind of norm, FrozenBatchNorm2d among them


def require_capturable(model: object) -> None:
    """Refuse what is no network, hides its network in a wrapper or hooks, or has weights without finite values.

    NaN is refused everywhere, infinity in parameters and in the statistics of norms. Other buffers, for example
    masks, may hold infinity.

    Raises:
        CaptureError: the model is unusable; the message names the module or tensor, and what to pass instead.
    """
    if not isinstance(model, nn.Module):
        what = "the class" if isinstance(model, type) else "an object of type"
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise CaptureError(f"model is {what} {name} and must be a torch.nn.Module; build the network and pass that")
    for path, module in model.named_modules():
        _require_bare(module, _expression(path))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _require_values(f"{name} of {type(model).__name__}", tensor)
        if _holds_faults(name, tensor):
            raise CaptureError(
                f"{name} of {type(model).__name__} holds NaN or infinite values; load finite weights before compressing"
            )
    for path, module in model.named_modules():  # last, as lazy modules have hooks until they are initialised
        _require_no_hooks(module, path)


def as_tensors(example_inputs: object) -> tuple[Tensor, ...]:
    """Return example inputs as a tuple with one tensor per argument of the model's forward; a dict's are its values.

    Raises:
        CaptureError: they hold something that is no tensor; the message says how to convert it.
    """
    if isinstance(example_inputs, Mapping):
        example_inputs = tuple(example_inputs.values())
    several = isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str)
    items: tuple[Any, ...] = tuple(example_inputs) if several else (example_inputs,)  # type: ignore[arg-type]
    if len(items) > 1 and all(isinstance(item, int) for item in items):
        raise CaptureError(
            f"example_inputs is the shape {items} and must be a tensor of that shape; pass torch.randn{items}"
        )
    for item in items:
        if isinstance(item, np.ndarray):
            raise CaptureError(
                f"example_inputs holds a NumPy array of shape {item.shape} where a tensor is needed; "
                "pass torch.from_numpy(array).float()"
            )
        if isinstance(item, Tensor) and not item.numel():
            raise CaptureError(
                f"example_inputs holds a tensor of shape {tuple(item.shape)}, which has no values; "
                "pass a batch of at least one image"
            )
        if not isinstance(item, Tensor):
            raise CaptureError(
                f"example_inputs holds {item!r:.40} of type {type(item).__name__} where a tensor is needed; "
                "pass a tensor, such as torch.randn(1, 3, 224, 224) for a batch of one image"
            )
    return items


def _expression(path: str) -> str:
    """Return how Python reaches the module at `path`: "features.0.conv" is model.features[0].conv."""
    parts = path.split(".") if path else []
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


def _require_bare(module: nn.Module, where: str) -> None:
    inside = _wrapped(module, where)
    if inside is not None:
        raise CaptureError(
            f"{where} is of type {type(module).__name__}, which hides the network from tracing; use {inside} instead"
        )
    if type(module).__module__.startswith(_QUANTISED):
        raise CaptureError(
            f"{where} is of type {type(module).__name__}, which quantises or imitates it, and a float network is "
            "needed; load the trained weights into the network before prepare or prepare_qat, compress that, and "
            "quantise the result"
        )


def _require_no_hooks(module: nn.Module, path: str) -> None:
    """Refuse hooks of the network itself and of layers of torch.nn, which tracing does not see.

    Hooks of other modules run while their forward is traced, and become part of the graph.
    """
    if path and not fx.Tracer().is_leaf_module(module, path):
        return
    for kind, hooks in (("forward hook", module._forward_hooks), ("forward pre-hook", module._forward_pre_hooks)):
        for hook in hooks.values():
            what = "the network itself, which tracing does not see," if not path else "a layer"
            raise CaptureError(
                f"{_expression(path)} has a {kind} ({getattr(hook, '__name__', type(hook).__name__)}), and hooks of "
                f"{what} would be lost in a merged network; {_remedy(hook, _expression(path))}"
            )


def _remedy(hook: object, where: str) -> str:
    """Return how to remove a hook but keep its effect on the weights."""
    if isinstance(hook, prune.BasePruningMethod):
        return f'make the pruning permanent with torch.nn.utils.prune.remove({where}, "{hook._tensor_name}")'
    for norm in ("spectral_norm", "weight_norm"):
        if type(hook).__module__ == f"torch.nn.utils.{norm}":
            return f"fold it into the weights with torch.nn.utils.remove_{norm}({where})"
    return "remove it with handle.remove(), where its registration returned the handle, or write it in a forward"


def _wrapped(module: nn.Module, where: str) -> str | None:
    """Return the replacement to suggest for a wrapper, or None for a module that is no wrapper."""
    if isinstance(module, torch.jit.ScriptModule):
        return "the original nn.Module that it was made from"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"{where}.module"
    if "_orig_mod" in module._modules:  # torch.compile's; naming its class would import the compiler
        return f"{where}._orig_mod, the original nn.Module,"
    return None


def _require_values(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise CaptureError(
            f"{name} is not initialised yet, as it belongs to a lazy module; run model(example) once before compressing"
        )
    if tensor.is_meta:
        raise CaptureError(f"{name} is on the meta device and has no values; load the weights before compressing")


def _holds_faults(name: str, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if isinstance(tensor, nn.Parameter) or name.rpartition(".")[2] in _STATISTICS:
        return not (bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all()))  # the sum alone is quick
    return bool(tensor.isnan().any())
