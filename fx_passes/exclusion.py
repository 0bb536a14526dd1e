"""Exclusion of layers that the user wants to keep as they are.

The nodes of excluded layers carry a mark. Spans with a marked node have no choices, whatever the kind. The channels
that marked nodes read and make stay, their layers are not refitted, and no norm is folded into or out of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from fx_passes.module_paths import places_of

__all__ = ["belongs", "exclude", "excluded_nodes", "exclusion", "freeze_excluded", "mark_nodes", "without_mark"]

_MARK = "stays_as"
"""Key of a node's `meta` that holds why the node must stay as it is, as a clause."""


def exclude(gm: fx.GraphModule, paths: Collection[str]) -> set[str]:
    """Mark the nodes of some of the user's modules, freeze their weights, and return the paths that were found.

    Args:
        gm: a captured graph, which is changed.
        paths: paths of the modules; all modules inside belong to them.
    """
    found = set[str]()
    for node in gm.graph.nodes:
        around = next((path for path in paths if belongs(node, path)), None)
        if around is not None:
            node.meta[_MARK] = f"you excluded {around}"
            found.add(around)
    freeze_excluded(gm)
    return found


def freeze_excluded(gm: fx.GraphModule) -> None:
    """Let the weights of excluded layers not be trained, in place."""
    for node in gm.graph.nodes:
        if exclusion(node) and node.op == "call_module":
            gm.get_submodule(str(node.target)).requires_grad_(False)
        elif exclusion(node) and node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            getattr(gm.get_submodule(owner), name).requires_grad_(False)


def excluded_nodes(gm: fx.GraphModule) -> dict[str, str]:
    """Return why marked nodes must stay as they are, as clauses by the nodes' names."""
    return {node.name: node.meta[_MARK] for node in gm.graph.nodes if _MARK in node.meta}


def mark_nodes(gm: fx.GraphModule, reasons: Mapping[str, str]) -> None:
    """Let nodes stay as they are, for reasons as `excluded_nodes` returns them, and freeze their weights, in place.

    Marked nodes keep their reason, and names of other graphs are passed over.
    """
    for node in gm.graph.nodes:
        if node.name in reasons:
            node.meta.setdefault(_MARK, reasons[node.name])
    freeze_excluded(gm)


def exclusion(node: fx.Node) -> str:
    """Return why a node must stay as it is, as a clause; empty where it may change."""
    reason: str = node.meta.get(_MARK, "")
    return reason


def without_mark(meta: dict[str, object]) -> dict[str, object]:
    """Return the `meta` of a node for a new node, which belongs to no excluded layer."""
    return {key: value for key, value in meta.items() if key != _MARK}


def belongs(node: fx.Node, path: str) -> bool:
    """Say whether a node stands for the user's module at a path, or for a part of it."""
    own = [place.path for place in places_of(node)] + ([str(node.target)] if node.op == "get_attr" else [])
    return any(f"{each}.".startswith(f"{path}.") for each in own)
