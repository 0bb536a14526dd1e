"""Models by name, for the command line: from torchvision, timm or a user's function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from depthcomp.data.example import USUAL_SIZE, infer_example
from depthcomp.data.input_names import InputNames
from depthcomp.data.inputs import Inputs
from depthcomp.errors import CaptureError, DepthCompError, MissingPackageError
from depthcomp.sources.onnx_file import read_onnx

__all__ = ["input_names", "load_model", "load_weights", "require_example"]

_SPELLING = "torchvision:NAME, timm:NAME, package.module:factory or FILE.onnx"
_NESTS = ("state_dict", "model")  # keys of the weights in checkpoints of training scripts
_PREFIXES = ("module.", "_orig_mod.")  # from DistributedDataParallel and torch.compile
_EXAMPLES = "example_inputs"  # the attribute with which a factory tells the shapes of several inputs
_NAMED_KEYS = 3  # a message names this many; the rest is counted


def load_model(
    spec: str, weights: Path | None = None, inputs: Sequence[str] | None = None
) -> tuple[nn.Module, Inputs | None]:
    """Return a model in evaluation mode and an example input for it, (1, c, h, w).

    Nothing is downloaded. The input's size comes from the model's `pretrained_cfg` or `default_cfg`. For torchvision
    it is the smallest size at which the published weights are evaluated. Else it is 224. The examples of several inputs
    are the model's attribute `example_inputs`, a tuple or a dict; without it there is None.

    Args:
        spec: `torchvision:NAME`, `timm:NAME`, `package.module:factory`, a callable without arguments that returns an
            nn.Module, or the path of an .onnx file; modules are also looked for in the current directory.
        weights: a .safetensors file or a torch file of tensors, for `load_weights`.
        inputs: names of the forward's arguments that are inputs; None to tell them by its signature.

    Raises:
        CaptureError: the spec is malformed or unknown, the model cannot be built, or the weights do not fit.
        MissingPackageError: the model needs timm, which is not installed.

    Warns:
        UserWarning: the weights are random, or the input size is a guess.

    Example:
        >>> model, example = load_model("torchvision:resnet18")  # doctest: +SKIP
        >>> example.held.shape                                   # doctest: +SKIP
        torch.Size([1, 3, 224, 224])
    """
    source, colon, name = spec.partition(":")
    if spec.endswith(".onnx"):
        if weights is not None:
            raise CaptureError(f"model {spec} holds its weights; leave out --weights")
        network, image = read_onnx(spec)
        return network, Inputs.of(image)
    if not (source and colon and name):
        raise CaptureError(f"model (={spec!r}) must be {_SPELLING}")
    model = _LIBRARIES.get(source, _from_factory)(spec)
    if weights is not None:
        load_weights(model, weights)
    elif source in _LIBRARIES:
        warnings.warn(
            f"{spec} has random weights, so its loss means nothing; give trained weights with --weights",
            stacklevel=2,
        )
    return model.eval(), _example(model, source, name, inputs)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights in a file into `model`, all of them.

    The file is a .safetensors file, or written by `torch.save(model.state_dict(), path)`. Checkpoints with the weights
    under "state_dict" or "model", and names that begin with "module.", are accepted. No code in the file is run.

    Raises:
        CaptureError: the file cannot be read, or its tensors do not fit the model.
    """
    weights = _without_prefix(_tensors(_read(path), path), model)
    wanted = model.state_dict()
    reshaped = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    if reshaped:
        first = reshaped[0]
        raise CaptureError(
            f"{path} has other shapes than the model for {_some(reshaped)} ({first} is "
            f"{tuple(weights[first].shape)}, not {tuple(wanted[first].shape)}); "
            "build the model for these weights in a package.module:factory"
        )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CaptureError(
            f"{path} does not fit the model: missing {_some(missing)}, unexpected {_some(unexpected)}; "
            "give weights of this model"
        )


def _from_torchvision(spec: str) -> nn.Module:
    from torchvision import models

    name = _name(spec)
    _require_known(name in models.list_models(), spec, models.list_models())
    builder = models.get_model_builder(name)
    parts = {"weights", "weights_backbone"} & inspect.signature(builder).parameters.keys()
    return _built(lambda: builder(**dict.fromkeys(parts)), spec)  # None: random, where the default may download


def _from_timm(spec: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            f'model {spec} needs the package timm; run `pip install "depthcomp[timm]"`'
        ) from error
    name = _name(spec)
    _require_known(timm.is_model(name), spec, timm.list_models())
    return _built(lambda: timm.create_model(name, pretrained=False), spec)


_LIBRARIES: dict[str, Callable[[str], nn.Module]] = {"torchvision": _from_torchvision, "timm": _from_timm}


def _from_factory(spec: str) -> nn.Module:
    source, _, name = spec.partition(":")
    module = _imported(source, spec)
    factory = getattr(module, name, None)
    if not callable(factory):
        what = "nothing" if factory is None else f"a {type(factory).__name__}"
        public = [key for key in vars(module) if not key.startswith("_")]
        raise CaptureError(
            f"model {spec} names {what} in {source}, but must name a function that returns the model"
            f"{_proposal(name, public)}"
        )
    return _built(factory, spec)


def _imported(source: str, spec: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(source)
    except Exception as error:  # a user's module can fail in any way
        proposal = _proposal(source, _LIBRARIES) if isinstance(error, ModuleNotFoundError) else ""
        if source.endswith(".py"):
            proposal = f"; a module's name has no .py, so write {source.removesuffix('.py').replace('/', '.')}:..."
        raise CaptureError(f"model {spec} cannot be imported: {_reason(error)}; write {_SPELLING}{proposal}") from error


def _built(build: Callable[[], Any], spec: str) -> nn.Module:
    try:
        model = build()
    except DepthCompError:
        raise
    except Exception as error:  # a constructor can fail in any way
        raise CaptureError(f"model {spec} cannot be built without arguments: {_reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model {spec} returned a {type(model).__name__}, but must return an nn.Module")
    return model


def _name(spec: str) -> str:
    return spec.partition(":")[2]


def _require_known(known: bool, spec: str, names: Iterable[str]) -> None:
    if not known:
        source, _, name = spec.partition(":")
        raise CaptureError(f"model {spec} is unknown to {source}{_proposal(name, names)}")


def _proposal(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def input_names(model: nn.Module, inputs: Sequence[str] | None = None) -> InputNames:
    """Return the names of a model's inputs, by the user's words, its attribute `example_inputs` or its forward."""
    return InputNames.of(model, getattr(model, _EXAMPLES, None), inputs)


def require_example(spec: str, example: Inputs | None) -> Inputs:
    """Return an example, or refuse a model without one.

    Raises:
        CaptureError: the model has several inputs, and does not tell their shapes.
    """
    if example is None:
        raise CaptureError(
            f"model {spec} takes several inputs, whose shapes are not known; let the factory set model.example_inputs, "
            "a tuple or a dict of tensors"
        )
    return example


def _example(model: nn.Module, source: str, name: str, inputs: Sequence[str] | None) -> Inputs | None:
    given, names = getattr(model, _EXAMPLES, None), input_names(model, inputs)
    if given is not None or names.several:
        return None if given is None else infer_example(model, given, None, names)[0]
    if source == "torchvision":
        size = _published_size(name)
        return Inputs.of(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    example, _, guess = infer_example(model, None, None)
    if guess:
        warnings.warn(
            f"{source}:{name} does not give its input size, so {tuple(example.held.shape[1:])} is assumed; let the "
            'factory set model.pretrained_cfg = {"input_size": (channels, height, width)}',
            stacklevel=3,
        )
    return example


def _published_size(name: str) -> int:
    """Return the smallest height and width at which torchvision evaluates the weights of a model."""
    from torchvision import models

    presets = [weights.transforms for weights in models.get_model_weights(name)]
    sizes = [getattr(preset, "keywords", {}).get("crop_size") for preset in presets]
    return min((size for size in sizes if isinstance(size, int)), default=USUAL_SIZE)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CaptureError(f"the weights file {path} does not exist; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise errors of any type
        raise CaptureError(
            f"the weights file {path} cannot be read ({type(error).__name__}); give a .safetensors file, or a file "
            "from torch.save(model.state_dict(), path)"
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise CaptureError(
            f"the weights file {path} holds a {type(content).__name__} without tensors by name; save "
            "model.state_dict() to it"
        )
    return tensors


def _without_prefix(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own = model.state_dict().keys()
    while own.isdisjoint(weights) and (prefix := next(filter(_leads(weights), _PREFIXES), None)):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _leads(weights: Iterable[str]) -> Callable[[str], bool]:
    return lambda prefix: all(name.startswith(prefix) for name in weights)


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = len(names) - _NAMED_KEYS
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
