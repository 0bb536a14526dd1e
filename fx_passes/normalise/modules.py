"""Plain module calls: no shared modules or tensors, no identities, no norms across processes."""

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.graph_edit import add_module
from fx_passes.normalise.functional import NORMS_BY_RANK

__all__ = ["CloneSharedModules", "CloneSharedTensors", "DropIdentities", "PlainNorms", "cloned_layers"]

_CLONE_OF = "clone_of"  # in a node's meta: the path of the module that its own is a copy of


class CloneSharedModules(PassBase):
    """Give each call of a module that is called more than once a copy of its own; `cloned_layers` tells which."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        calls: Counter[str] = Counter()
        modified = False
        for node in graph_module.graph.find_nodes(op="call_module", sort=True):
            calls[node.target] += 1
            if calls[node.target] > 1:
                clone = copy.deepcopy(graph_module.get_submodule(node.target))
                node.meta[_CLONE_OF] = node.target
                node.target = add_module(graph_module, f"{node.target}_call{calls[node.target]}", clone)
                modified = True
        return PassResult(graph_module, modified)


def cloned_layers(gm: fx.GraphModule) -> list[str]:
    """Return the paths of the layers with weights that a forward calls several times, each time with its own copy."""
    nodes = [node for node in gm.graph.find_nodes(op="call_module") if _CLONE_OF in node.meta]
    weighted = [node for node in nodes if any(True for _ in gm.get_submodule(node.target).parameters())]
    return list(dict.fromkeys(node.meta[_CLONE_OF] for node in weighted))


class CloneSharedTensors(PassBase):
    """Give each module its own parameters and buffers where several share a tensor, or views of one tensor."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        seen = set[int]()
        modified = False
        for module in graph_module.modules():
            for name, tensor in _tensors_of(module):
                if tensor.layout is not torch.strided or not tensor.numel():
                    continue
                numbers = tensor.untyped_storage().data_ptr()
                if numbers in seen:
                    setattr(module, name, _copy_of(tensor))
                    modified = True
                seen.add(numbers)
        return PassResult(graph_module, modified)


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a module's own parameters and buffers by name."""
    options = {"recurse": False, "remove_duplicate": False}
    return [*module.named_parameters(**options), *module.named_buffers(**options)]  # type: ignore[arg-type]


def _copy_of(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


class DropIdentities(PassBase):
    """Erase calls of nn.Identity."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in graph_module.graph.find_nodes(op="call_module"):
            if type(graph_module.get_submodule(node.target)) is nn.Identity:
                node.replace_all_uses_with(node.args[0])
                graph_module.graph.erase_node(node)
                modified = True
        return PassResult(graph_module, modified)


class PlainNorms(PassBase):
    """Replace nn.SyncBatchNorm, which trains only on GPUs, by the norm of one process; shapes must be known.

    `nn.SyncBatchNorm.convert_sync_batchnorm` converts them back for training on several GPUs.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in graph_module.graph.find_nodes(op="call_module"):
            module = graph_module.get_submodule(node.target)
            kind = NORMS_BY_RANK.get(len(getattr(node.meta.get("tensor_meta"), "shape", ())))
            if type(module) is nn.SyncBatchNorm and kind is not None:
                graph_module.set_submodule(node.target, _plain(module, kind))
                modified = True
        return PassResult(graph_module, modified)


def _plain(norm: nn.SyncBatchNorm, kind: type[nn.Module]) -> nn.Module:
    """Return the norm of one process with the options, parameters and statistics of `norm`."""
    plain = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    plain.load_state_dict(norm.state_dict(), assign=True)
    return plain.train(norm.training)
