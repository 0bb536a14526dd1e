"""A network on disk, as structure and weights.

It is stored without pickle and without its class: `model.json` holds the graph (see
`depthcomp.results.graph_json`), `model.safetensors` the values of its tensors. A killed write leaves the old or the
new network: new values are first written under the name of their digest, then `model.json` is replaced, then
`model.safetensors`. Loading finds the values under either name.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from depthcomp.errors import ArtifactError
from depthcomp.results import graph_json
from depthcomp.results.graph_json import StoredModule, StoredNetwork, StoredTensor
from depthcomp_errors.first_line import first_line
from depthcomp_files import JsonFormat, require_writable_folder, write_atomically, write_json
from fx_passes.exclusion import excluded_nodes, mark_nodes
from fx_passes.graph_edit import attach_attributes, preserved_attributes
from fx_passes.outputs import tensors_of

__all__ = ["load", "load_network", "require_storable", "save_network"]

_STRUCTURE, _WEIGHTS = "model.json", "model.safetensors"
_NEXT = ".model.safetensors.*.next"  # weights by their digest, before they get their name
_FORMAT = JsonFormat(
    "stored network", StoredNetwork, "schema_version", graph_json.SCHEMA_VERSION, "save the network anew",
    has_kind=False, error=ArtifactError,
)  # fmt: skip


def save_network(
    gm: fx.GraphModule, directory: str | os.PathLike[str], example_inputs: tuple[Tensor, ...] = ()
) -> Path:
    """Write a network to model.json and model.safetensors in a folder, and return the folder.

    Before anything is written, the network is rebuilt from its stored form. With `example_inputs`, both run in
    evaluation mode and must return equal bits. `gm` is not changed. Plain attributes of the user (num_classes,
    pretrained_cfg, ...) are kept as far as JSON can hold them. An older network stays until the new one is complete.

    Raises:
        ArtifactError: a node or a layer cannot be stored (it is named), the rebuilt network differs, or the
            folder cannot be written.
    """
    folder = require_writable_folder(directory)
    try:
        stored, values = _encode(gm)
        rebuilt = _decode(stored, values)
    except ValueError as error:
        raise ArtifactError(f"the network cannot be stored: {error}") from error
    if example_inputs:
        _require_same_outputs(gm, rebuilt, example_inputs)
    weights = safetensors.torch.save(values)
    stored.sha256 = hashlib.sha256(weights).hexdigest()
    if (folder / _STRUCTURE).exists():
        write_atomically(folder / _NEXT.replace("*", stored.sha256), weights)
    write_json(folder / _STRUCTURE, stored.model_dump())
    write_atomically(folder / _WEIGHTS, weights)
    for path in folder.glob(_NEXT):
        path.unlink(missing_ok=True)
    return folder


def require_storable(gm: fx.GraphModule) -> None:
    """Refuse a network that `save_network` would refuse, but for its outputs; nothing is written.

    Raises:
        ArtifactError: a node or a layer cannot be stored; it is named.
    """
    try:
        _encode(gm)
    except ValueError as error:
        raise ArtifactError(f"the network cannot be stored: {error}") from error


def _encode(gm: fx.GraphModule) -> tuple[StoredNetwork, dict[str, Tensor]]:
    nodes = graph_json.encode_graph(gm)
    paths = [node.target for node in nodes if node.op == "call_module"]
    modules = {path: _encode_module(path, gm.get_submodule(path)) for path in paths}
    fetched = {node.target for node in nodes if node.op == "get_attr"}
    tensors, values = _encode_tensors(gm, modules, fetched)
    network = StoredNetwork(
        schema_version=graph_json.SCHEMA_VERSION,
        name=type(gm).__name__,
        nodes=nodes,
        modules=modules,
        tensors=tensors,
        attributes=_encode_attributes(gm),
        sha256="",
        excluded=excluded_nodes(gm),
    )
    _require_targets(network)
    return network, values


def _encode_module(path: str, module: nn.Module) -> StoredModule:
    try:
        return graph_json.encode_module(module)
    except ValueError as error:
        raise ValueError(f"module {path!r} ({type(module).__name__}) cannot be stored: {error}") from error


def _encode_tensors(
    gm: fx.GraphModule, modules: Mapping[str, StoredModule], fetched: set[str]
) -> tuple[dict[str, StoredTensor], dict[str, Tensor]]:
    """Return descriptions and values of the tensors that the graph uses; a shared tensor is stored once."""
    stored: dict[str, StoredTensor] = {}
    values: dict[str, Tensor] = {}
    first_path: dict[int, str] = {}
    for path, tensor in _all_tensors(gm):
        if path in fetched or _held_by(path, modules):
            key = first_path.setdefault(id(tensor), path)
            stored[path] = _describe(gm, path, tensor, key)
            values.setdefault(key, tensor.detach().clone(memory_format=torch.contiguous_format))
    missing = sorted(fetched - stored.keys())
    if missing:
        raise ValueError(f"node with target {missing[0]!r} fetches something other than a parameter or buffer")
    return stored, values


def _all_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]


def _held_by(path: str, modules: Mapping[str, StoredModule]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:depth]) in modules for depth in range(1, len(parts)))


def _describe(gm: fx.GraphModule, path: str, tensor: Tensor, key: str) -> StoredTensor:
    owner, _, name = path.rpartition(".")
    return StoredTensor(
        key=key,
        parameter=isinstance(tensor, nn.Parameter),
        requires_grad=tensor.requires_grad,
        persistent=name not in gm.get_submodule(owner)._non_persistent_buffers_set,
        channels_last=_lies_channels_last(tensor),
    )


def _lies_channels_last(tensor: Tensor) -> bool:
    """Return whether torch treats a tensor as channels-last.

    Strides decide, not `is_contiguous`: a tensor of one channel or one pixel is contiguous in both formats. A
    convolution still chooses its kernel, and so its rounding, by the strides.
    """
    if tensor.dim() != 4:
        return False
    usual, last = (
        torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    return tensor.stride() == last != usual


def _encode_attributes(gm: fx.GraphModule) -> dict[str, Any]:
    encoded = {}
    for name, value in preserved_attributes(gm).items():
        try:
            encoded[name] = graph_json.encode_value(value)
        except ValueError:
            continue  # an object of the user's own class: the network runs without it
    return encoded


def _require_same_outputs(gm: fx.GraphModule, rebuilt: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    original = copy.deepcopy(gm).eval() if any(module.training for module in gm.modules()) else gm
    with torch.no_grad():
        wanted = tensors_of(original(*example_inputs))
        found = tensors_of(rebuilt.to(example_inputs[0].device)(*example_inputs))
    if len(wanted) != len(found) or not all(map(_same_bits, wanted, found)):
        raise ArtifactError(
            "the stored network returns other values than the original on the example inputs; remove random numbers "
            "and state from its forward, which cannot be stored"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool(torch.allclose(a, b, 0, 0, equal_nan=True))


def load_network(directory: str | os.PathLike[str]) -> fx.GraphModule:
    """Return the network that `save_network` wrote to a folder, on the CPU and in evaluation mode.

    No code of the network's class is needed or run: the files may name only operations on closed lists.

    Raises:
        ArtifactError: a file is missing, truncated, of another version, or not written by depthcomp.
    """
    folder = Path(directory)
    structure = folder / _STRUCTURE
    stored = _FORMAT.read(structure)
    values = _parse_weights(folder, stored)
    try:
        return _decode(stored, values)
    except Exception as error:  # a foreign file can trip torch in any way
        raise ArtifactError(f"{structure} cannot be rebuilt: {first_line(error)}; save the network anew") from error


def load(directory: str | os.PathLike[str]) -> fx.GraphModule:
    """Return the compressed network in a folder that `CompressionResult.save` wrote.

    The network is on the CPU and in evaluation mode; neither the original model nor its class is needed.

    Raises:
        ArtifactError: the folder does not exist, or holds no network that this release can read.

    Example:
        >>> model = load("compressed")  # doctest: +SKIP
    """
    folder = Path(directory)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ArtifactError(f"{folder} {what}; give the folder that CompressionResult.save wrote")
    return load_network(folder)


def _parse_weights(folder: Path, stored: StoredNetwork) -> dict[str, Tensor]:
    path = folder / _WEIGHTS
    try:
        contents = (file.read_bytes() for file in (path, *folder.glob(_NEXT)))
        data = next((data for data in contents if hashlib.sha256(data).hexdigest() == stored.sha256), None)
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror}; give the folder that CompressionResult.save wrote"
        ) from error
    if data is None:
        raise ArtifactError(
            f"{path} does not belong to the {_STRUCTURE} beside it: it is truncated, changed or from another "
            "network; save the network anew"
        )
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # safetensors raises errors of its own that share no useful base
        raise ArtifactError(f"{path} is not a safetensors file ({error}); save the network anew") from error


def _decode(stored: StoredNetwork, values: Mapping[str, Tensor]) -> fx.GraphModule:
    _require_targets(stored)
    root = nn.Module()
    for path, module in stored.modules.items():
        owner, name = _owner(root, path)
        owner.add_module(name, graph_json.build_module(module))
    _fill(root, stored, values)
    gm = fx.GraphModule(root, graph_json.decode_graph(stored.nodes), stored.name)
    mark_nodes(gm, stored.excluded)
    _attach_attributes(gm, stored)
    return gm.eval()


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds `path`, creating missing containers, and the last part of `path`."""
    *parts, name = path.split(".")
    owner = root
    for part in parts:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner, name


def _fill(root: nn.Module, stored: StoredNetwork, values: Mapping[str, Tensor]) -> None:
    """Put the values into their places; a shared tensor becomes one object again."""
    shared: dict[str, Tensor] = {}
    for path, description in stored.tensors.items():
        if description.key not in values:
            raise ValueError(f"the tensor {path!r} has no values")
        if description.key not in shared:
            shared[description.key] = _tensor(description, values[description.key])
        _put(root, path, description, shared[description.key])
    empty = [path for path, tensor in _all_tensors(root) if tensor.is_meta]
    if empty:
        raise ValueError(f"the tensor {empty[0]!r} has no values")


def _tensor(description: StoredTensor, values: Tensor) -> Tensor:
    if description.channels_last:
        values = torch.empty_like(values, memory_format=torch.channels_last).copy_(values)
    return nn.Parameter(values, description.requires_grad) if description.parameter else values


def _put(root: nn.Module, path: str, description: StoredTensor, tensor: Tensor) -> None:
    owner, name = _owner(root, path)
    declared = {**owner._parameters, **owner._buffers}.get(name)
    if declared is not None and declared.shape != tensor.shape:
        raise ValueError(f"the tensor {path!r} has shape {tuple(tensor.shape)}, not {tuple(declared.shape)}")
    if declared is None and type(owner) is not nn.Module:
        raise ValueError(f"the tensor {path!r} has no place in {type(owner).__name__}")
    if declared is not None:
        delattr(owner, name)
    if description.parameter:
        owner.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else None)
    else:
        owner.register_buffer(name, tensor, persistent=description.persistent)


def _require_targets(stored: StoredNetwork) -> None:
    for path in (*stored.modules, *stored.tensors):
        graph_json.require_plain_path(path)
    places: dict[str, Mapping[str, Any]] = {"call_module": stored.modules, "get_attr": stored.tensors}
    for node in stored.nodes:
        if node.op in places and node.target not in places[node.op]:
            raise ValueError(f"node {node.name!r} refers to {node.target!r}, which is not stored")


def _attach_attributes(gm: fx.GraphModule, stored: StoredNetwork) -> None:
    attributes = {name: graph_json.decode_value(value, {}) for name, value in stored.attributes.items()}
    for name in attributes:
        if name.startswith("_") or hasattr(gm, name):
            raise ValueError(f"the attribute {name!r} would hide an attribute of the network")
    attach_attributes(gm, attributes)
