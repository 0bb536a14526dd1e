"""Facts about the nodes of a graph, each computed once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx, nn

from fx_passes.graph_edit import nodes_by_name
from fx_passes.module_paths import ModuleNames
from fx_passes.operators import Role, image_shape, known_layer, role

__all__ = ["GraphFacts"]


class GraphFacts:
    """The nodes of a graph by name, their order, roles, layers and shapes.

    Roles and layers are computed at the first request. While a rewrite edits the graph, names stay valid; roles and
    layers do not.

    Args:
        gm: the graph.

    Attributes:
        gm: the graph.
        nodes: its nodes by name, in order.
        order: the position of each node, by name.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes = nodes_by_name(gm)
        self.order = {name: position for position, name in enumerate(self.nodes)}

    @cached_property
    def roles(self) -> dict[str, Role]:
        """The role of each node, by name."""
        return {name: role(self.gm, node) for name, node in self.nodes.items()}

    def words(self, names: Iterable[str]) -> str:
        """Return a short description of the user's modules that the named nodes stand for."""
        return self._module_names.describe_names(names)

    @cached_property
    def _module_names(self) -> ModuleNames:
        return ModuleNames(self.nodes)

    def layer(self, name: str) -> nn.Module | None:
        """Return the layer of a known kind that a node calls, or None."""
        return self._layers[name]

    @cached_property
    def _layers(self) -> dict[str, nn.Module | None]:
        return {name: known_layer(self.gm, node) for name, node in self.nodes.items()}

    def shape(self, name: str) -> tuple[int, int, int, int] | None:
        """Return the shape (n, c, h, w) of the images at a node, or None where there are none."""
        return image_shape(self.nodes[name])
