"""Structure of a network as plain JSON, limited to closed lists of operations.

No file decides what is imported or looked up. Layers come from `torch.nn` and a list of this package; functions,
methods and attributes come from the lists of `allowed_calls`. Every name in generated code must match a pattern. The
JSON only names the tensors; their values are stored elsewhere.
"""

from __future__ import annotations

import inspect
import math
import re
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor, fx, nn

from depthcomp.results.allowed_calls import METHODS, READABLE_ATTRIBUTES, function_called, function_name
from depthcomp_errors.first_line import first_line
from depthcomp_files import first_fault
from fx_passes.channel_affine import ChannelAffine
from fx_passes.module_paths import module_path
from fx_passes.output_records import OutputRecord, OutputTuple

__all__ = [
    "SCHEMA_VERSION",
    "StoredModule",
    "StoredNetwork",
    "StoredNode",
    "StoredTensor",
    "build_module",
    "decode_graph",
    "decode_value",
    "encode_graph",
    "encode_module",
    "encode_value",
    "require_plain_path",
]

SCHEMA_VERSION: Literal[1] = 1
_ASCII_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"
_NAME = r'[^."\\\x00-\x1f\x7f]+'  # fx writes names of modules between double quotes
_DOTTED_PATH = rf"^{_NAME}(\.{_NAME})*$"

Identifier = Annotated[str, StringConstraints(pattern=_ASCII_IDENTIFIER)]
DottedPath = Annotated[str, StringConstraints(pattern=_DOTTED_PATH)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StoredNode(_Stored):
    """One node of the graph; `args` and `kwargs` are written by `encode_value`."""

    op: Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]
    name: Identifier
    target: DottedPath
    args: list[Any]
    kwargs: dict[Identifier, Any]


class StoredModule(_Stored):
    """A layer of `torch.nn` or of captured graphs: the name of its class and the arguments of its constructor."""

    kind: Identifier
    arguments: dict[Identifier, Any]


class StoredTensor(_Stored):
    """A parameter or buffer: the key of its values in the weights file, and its properties."""

    key: str
    parameter: bool
    requires_grad: bool
    persistent: bool
    channels_last: bool


class StoredNetwork(_Stored):
    """The whole file.

    Attributes:
        sha256: digest of the weights file.
        excluded: for each node that must stay as it is, the reason.
    """

    schema_version: Literal[1]
    name: Identifier
    nodes: list[StoredNode]
    modules: dict[DottedPath, StoredModule]
    tensors: dict[DottedPath, StoredTensor]
    attributes: dict[Identifier, Any]
    sha256: str
    excluded: dict[Identifier, str] = {}


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )
}  # fmt: skip
_MEMORY_FORMATS = {
    str(layout).removeprefix("torch."): layout
    for layout in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}
_OWN_LAYERS = {layer.__name__: layer for layer in (ChannelAffine,)}  # of captured graphs, beside those of torch.nn
_DEVICE = re.compile(r"(cpu|cuda|xpu|mps|meta)(:[0-9]+)?")


def require_plain_path(path: str) -> None:
    """Refuse the path of a module or tensor that generated code would not read as an attribute of that very name.

    fx writes `self.conv` for the path "conv". Python normalises such names, and finds methods of a GraphModule first.

    Raises:
        ValueError: a part of the path hides an attribute of networks, is private to Python, or is normalised.
    """
    for part in path.split("."):
        if part.startswith("__") or hasattr(fx.GraphModule, part) or unicodedata.normalize("NFKC", part) != part:
            raise ValueError(f"the name {path!r} of a module or tensor, in which {part!r} is no name of its own")


def encode_value(value: Any) -> Any:
    """Return `value` as plain JSON; a value that JSON lacks becomes an object with one field, named after its kind.

    Raises:
        ValueError: values of this type are not stored.

    Example:
        >>> encode_value((1, None, slice(0, 2)))
        {'tuple': [1, None, {'slice': [0, 2, None]}]}
    """
    if value is None or isinstance(value, bool) or type(value) is str:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    return _encode_container(value)


def _encode_container(value: Any) -> Any:
    if type(value) is tuple or isinstance(value, torch.Size):
        return {"tuple": [encode_value(item) for item in value]}
    if type(value) is list or isinstance(value, fx.immutable_collections.immutable_list):
        return [encode_value(item) for item in value]
    if type(value) is dict or isinstance(value, fx.immutable_collections.immutable_dict):
        return {"dict": [[encode_value(key), encode_value(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode_value(part) for part in (value.start, value.stop, value.step)]}
    return _encode_constant(value)


def _encode_constant(value: Any) -> Any:
    if value is Ellipsis:
        return {"ellipsis": None}
    for kind, known in (("dtype", _DTYPES), ("memory_format", _MEMORY_FORMATS)):
        for name, constant in known.items():
            if value is constant:
                return {kind: name}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise ValueError(f"a value of type {type(value).__module__}.{type(value).__qualname__}, which is not stored")


def decode_value(stored: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """Return the value that `encode_value` wrote; `nodes` are the nodes that it may refer to.

    Raises:
        ValueError: the value is malformed, or refers to a node that is not there.
    """
    if isinstance(stored, list):
        return [decode_value(item, nodes) for item in stored]
    if not isinstance(stored, dict):
        return stored
    if len(stored) != 1:
        raise ValueError(f"a value with the fields {sorted(stored)}, where one field is expected")
    tag, content = next(iter(stored.items()))
    if tag == "dict":
        return {_key(key, nodes): decode_value(item, nodes) for key, item in content}
    if tag in ("tuple", "slice"):
        items = [decode_value(item, nodes) for item in content]
        return tuple(items) if tag == "tuple" else slice(*items)
    return _decode_constant(tag, content, nodes)


def _key(stored: Any, nodes: Mapping[str, fx.Node]) -> Any:
    key = decode_value(stored, nodes)
    if not isinstance(key, str | int | float | bool | tuple | None):
        raise ValueError(f"the dictionary key {key!r}, which is no plain value")
    return key


def _decode_constant(tag: str, content: Any, nodes: Mapping[str, fx.Node]) -> Any:
    known: dict[str, Mapping[str, Any]] = {
        "node": nodes,
        "dtype": _DTYPES,
        "memory_format": _MEMORY_FORMATS,
        "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
    }
    if tag == "ellipsis":
        return ...
    if tag == "device" and isinstance(content, str) and _DEVICE.fullmatch(content):
        return torch.device(content)
    if tag in known and isinstance(content, str) and content in known[tag]:
        return known[tag][content]
    raise ValueError(f"the {tag} {content!r}, which is unknown here")


def encode_graph(gm: fx.GraphModule) -> list[StoredNode]:
    """Return the nodes of the graph of `gm`.

    Raises:
        ValueError: a node cannot be stored; the message names it.
    """
    if type(gm.graph._codegen) is not fx.graph.CodeGen:
        raise ValueError("the network takes or returns nested structures; capture it with tensors as arguments")
    return [_encode_node(node) for node in gm.graph.nodes]


def _encode_node(node: fx.Node) -> StoredNode:
    try:
        target, args, kwargs = _call(node)
        stored = StoredNode(
            op=node.op,  # type: ignore[arg-type]  # fx has no other ops; "root" never stands in a graph
            name=node.name,
            target=function_name(target) if callable(target) else target,
            args=[encode_value(item) for item in args],
            kwargs={name: encode_value(item) for name, item in kwargs.items()},
        )
        _require_allowed(stored.op, stored.target, args, kwargs)
    except ValueError as error:
        raise ValueError(f"{module_path(node)} ({_readable(node.target)}) cannot be stored: {_fault(error)}") from error
    return stored


def _call(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a node's target, args and kwargs; a record takes the place of an object of the user's class."""
    names = getattr(node.target, "_fields", ())  # a named tuple's arguments have no names
    if node.op != "call_function" or not isinstance(node.target, type) or len(node.args) != len(names):
        return node.target, node.args, node.kwargs
    fields = {**dict(zip(names, node.args, strict=True)), **node.kwargs}
    return (OutputTuple if names else OutputRecord), (), fields


def decode_graph(nodes: list[StoredNode]) -> fx.Graph:
    """Return the graph of these nodes.

    Raises:
        ValueError: a node's operation is not on the lists, or two nodes have one name; the message names the node.
    """
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for stored in nodes:
        if stored.name == "self":
            raise ValueError("a node called 'self', which is the network's own name in its code")
        if stored.name in known:
            raise ValueError(f"there are two nodes {stored.name!r}")
        try:
            known[stored.name] = _add_node(graph, stored, known)
        except ValueError as error:
            raise ValueError(f"node {stored.name!r} holds {error}") from error
    graph.lint()
    return graph


def _add_node(graph: fx.Graph, stored: StoredNode, known: Mapping[str, fx.Node]) -> fx.Node:
    args = tuple(decode_value(item, known) for item in stored.args)
    kwargs = {name: decode_value(item, known) for name, item in stored.kwargs.items()}
    _require_allowed(stored.op, stored.target, args, kwargs)
    target = function_called(stored.target) if stored.op == "call_function" else stored.target
    return graph.create_node(stored.op, target, args, kwargs, name=stored.name)


def _require_allowed(op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if op in ("placeholder", "output") and not re.fullmatch(_ASCII_IDENTIFIER, target):
        raise ValueError(f"the target {target!r}, which is no plain name")
    if op == "call_method" and target not in METHODS:
        raise ValueError(f"a call of the tensor method {target!r}, which is not on the list")
    if op == "call_function" and target == "builtins.getattr":
        plain = len(args) == 2 and not kwargs and isinstance(args[1], str)
        if not (plain and isinstance(args[0], fx.Node) and args[1] in READABLE_ATTRIBUTES):
            raise ValueError(f"a getattr other than of {sorted(READABLE_ATTRIBUTES)}")


def encode_module(module: nn.Module) -> StoredModule:
    """Return the stored form of a layer of `torch.nn`: its class and the arguments of its constructor.

    Each argument is read from the attribute of its name; a tensor stands for True, as in `bias`. The layer is built
    again from them and must be alike.

    Raises:
        ValueError: the layer is not of torch.nn, has hooks, or its arguments cannot be read back.
    """
    kind = type(module).__name__
    if _layer(kind) is not type(module):
        raise ValueError(f"{type(module).__module__}.{kind} is no layer of torch.nn")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError("it has forward hooks, which are code; remove them first")
    stored = StoredModule(kind=kind, arguments=_arguments(module))
    _require_alike(module, build_module(stored))
    return stored


def _arguments(module: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(type(module)).parameters.values()
    plain = [p for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {
        p.name: _argument(getattr(module, p.name), p)
        for p in plain
        if p.name not in ("device", "dtype") and not p.name.startswith("_") and hasattr(module, p.name)
    }


def _argument(value: Any, parameter: inspect.Parameter) -> Any:
    if isinstance(value, Tensor):
        return True
    if value is None and isinstance(parameter.default, bool):
        return False
    return encode_value(value)


def _require_alike(module: nn.Module, rebuilt: nn.Module) -> None:
    shapes, rebuilt_shapes = _tensor_shapes(module), _tensor_shapes(rebuilt)
    if repr(module) != repr(rebuilt) or shapes != rebuilt_shapes:
        raise ValueError(f"rebuilt from its attributes it becomes {rebuilt!r}")


def _tensor_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def build_module(stored: StoredModule) -> nn.Module:
    """Return the layer on the meta device: without values, in evaluation mode.

    Raises:
        ValueError: there is no such layer in `torch.nn`, or the arguments do not fit it.
    """
    layer = _layer(stored.kind)
    if layer is None:
        raise ValueError(f"a layer {stored.kind}, which torch.nn does not have")
    arguments = {name: decode_value(item, {}) for name, item in stored.arguments.items()}
    try:
        with torch.device("meta"):
            return layer(**arguments).eval()
    except Exception as error:  # constructors raise errors of any type
        raise ValueError(f"arguments that {stored.kind} does not take ({_fault(error)})") from error


def _layer(kind: str) -> type[nn.Module] | None:
    layer = _OWN_LAYERS.get(kind) or vars(nn).get(kind)
    return layer if isinstance(layer, type) and issubclass(layer, nn.Module) else None


def _readable(target: Any) -> str:
    if not callable(target):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"


def _fault(error: Exception) -> str:
    return first_fault(error) if isinstance(error, ValidationError) else first_line(error)
