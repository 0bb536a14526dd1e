"""Outputs of networks: their tensors, objects that hold them, and the comparison of a graph's with its model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from depthcomp_errors import CaptureError

__all__ = [
    "OutputRecord",
    "OutputTuple",
    "add_floats_behind",
    "is_output",
    "noise_like",
    "require_comparable",
    "require_equal",
    "returned_nodes",
    "tensors_of",
]

_SEED = 0
_LEAST_SCALE = 1e-12  # outputs below it in size are compared as they are


class OutputRecord(dict[str, Any]):
    """Outputs by name, read as items or as attributes; a loaded network returns it for an object of the user's class.

    Example:
        >>> OutputRecord(logits=1).logits
        1
    """

    def __getattribute__(self, name: str) -> Any:
        """Return the output called `name`, also one that a method of dict is called."""
        return self[name] if not name.startswith("_") and name in self else super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        """Refuse what is no output."""
        raise AttributeError(f"there is no output {name!r}; the outputs are {', '.join(self)}")


class OutputTuple(tuple[Any, ...]):
    """Outputs in order, read as items or as attributes; a loaded network returns it for a named tuple of the user's.

    Example:
        >>> boxes, scores = OutputTuple(boxes=1, scores=2)
        >>> OutputTuple(boxes=1, scores=2).scores
        2
    """

    __slots__ = ()

    def __new__(cls, **outputs: Any) -> OutputTuple:
        """Return the outputs; their names are the arguments'."""
        fields = {name: property(itemgetter(k)) for k, name in enumerate(outputs) if not name.startswith("_")}
        named = type(cls.__name__, (cls,), fields)
        found: OutputTuple = tuple.__new__(named, outputs.values())
        return found


def is_output(node: fx.Node) -> bool:
    """Say whether a node is the output of a graph, or puts outputs into an object of the user's class."""
    return node.op == "output" or (node.op == "call_function" and isinstance(node.target, type))


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors in a forward's output in order, also from containers and dataclasses."""
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, OutputTuple):
            found += tensors_of(list(leaf))
        elif isinstance(leaf, Mapping):
            found += tensors_of(list(dict.values(leaf)) if isinstance(leaf, dict) else list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return found


def add_floats_behind(gm: fx.GraphModule) -> bool:
    """Add the floating-point tensors behind the outputs to a captured graph's outputs, where no output is one.

    Classes and masks are computed from scores; only those tell how much a change matters. The graph is changed in
    place, and returns pairs of its outputs and these tensors.

    Returns:
        Whether the graph was changed.
    """
    output = next(iter(gm.graph.find_nodes(op="output")))
    returned = list(returned_nodes(output))
    behind = list(dict.fromkeys(node for source in returned for node in _floats_behind(source)))
    if any(dtype.is_floating_point for node in returned for dtype in _dtypes(node)) or not behind:
        return False
    output.args = ((output.args[0], tuple(behind)),)
    gm.recompile()
    return True


def returned_nodes(output: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes whose values an output node returns, in order, also out of objects of the user's classes."""
    for source in tree_leaves((output.args, dict(output.kwargs))):
        if isinstance(source, fx.Node):
            yield from returned_nodes(source) if is_output(source) else (source,)


def _floats_behind(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the last nodes before a node whose values are floating-point tensors."""
    for source in node.all_input_nodes:
        dtypes = _dtypes(source)  # several where an operator returns a tuple, as topk does
        if dtypes:  # none in a size
            real = all(dtype.is_floating_point for dtype in dtypes)
            yield from (source,) if real else _floats_behind(source)


def _dtypes(node: fx.Node) -> list[torch.dtype]:
    return [leaf for leaf in tree_leaves(node.meta.get("tensor_meta")) if isinstance(leaf, torch.dtype)]


def noise_like(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return reproducible random inputs with the shapes and types of `inputs`; inputs that are not floating point stay.

    An example of zeros, passed through layers without biases, would agree with any graph.
    """
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(
        torch.randn(x.shape, generator=generator).to(x.device, x.dtype) if x.is_floating_point() else x for x in inputs
    )


def require_comparable(name: str, outputs: Sequence[Tensor]) -> None:
    """Refuse outputs that hold no values, or values that are not finite.

    Raises:
        CaptureError: the outputs of the model `name` cannot be compared with its graph's.
    """
    if not any(output.numel() for output in outputs):
        raise CaptureError(
            f"{name} returns no tensor with values on the example inputs, so its graph cannot be compared with it; "
            "return tensors, or a tuple, list, dict or dataclass of them"
        )
    for index, output in enumerate(outputs):
        if not torch.isfinite(output).all():
            raise CaptureError(
                f"output {index} of {name} holds NaN or infinite values on the example inputs; "
                "pass images that are normalised as for training, check the statistics of its norms, and return finite "
                "scores"
            )


def require_equal(name: str, expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> None:
    """Refuse a graph whose outputs differ from its model's.

    Raises:
        CaptureError: outputs differ in number, in shape, or by more than `tolerance` relative to the largest value.
    """
    wanted, had = ([tuple(output.shape) for output in outputs] for outputs in (expected, found))
    if wanted != had:
        raise CaptureError(
            f"the captured graph of {name} returns tensors of shape {had} where the model returns {wanted}; "
            + _likely_causes(name)
        )
    for index, pair in enumerate(zip(expected, found, strict=True)):
        error = _difference(*map(_as_doubles, pair))
        if not error <= tolerance:
            raise CaptureError(
                f"the captured graph of {name} differs from the model by {error:.2g} (relative) in output {index}; "
                + _likely_causes(name)
            )


def _likely_causes(name: str) -> str:
    return (
        f"the likely cause is that the forward of {name} draws random numbers or keeps state, writes in place (also "
        "by +=) to a tensor that is read again under another name, takes statistics of the batch in evaluation mode, "
        "or switches autocast on; take that out of the forward, or capture a part of the network without it"
    )


def _difference(want: Tensor, have: Tensor) -> float:
    if not want.numel():
        return 0.0
    return float((want - have).abs().max() / want.abs().max().clamp_min(_LEAST_SCALE))


def _as_doubles(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()
