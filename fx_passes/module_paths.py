"""Users' names of nodes and spans: the paths of the captured model's modules.

Plans and files know a node by its name in the graph (`batch_norm_17`). People know the paths of their own modules
(`blocks.3.1.bn2`). Tracing records a place at each node that computes something, and every pass hands it on. A node
that replaces several nodes has the places of all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

__all__ = [
    "PLACES",
    "ModuleNames",
    "Place",
    "copy_places",
    "cover_places",
    "describe_modules",
    "module_path",
    "places_of",
    "set_places",
]

PLACES = "user_places"
"""Key of a node's `meta` that holds its places, as a tuple."""

_WORDS = {
    "iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "imul": "mul", "rmul": "mul",
    "truediv": "div", "itruediv": "div", "rtruediv": "div", "getitem": "index",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """A module of the user's model, or an operation that the forward of a module writes out.

    Attributes:
        path: the module's path in the model; empty for the model itself.
        operation: the operation's name, such as "add"; empty where the node is the module as a whole.
    """

    path: str
    operation: str = ""

    @classmethod
    def of_call(cls, path: str, called: str) -> Place:
        """Return the place of a function or method that is called in the forward of the module at `path`.

        All spellings of an operation get one word.

        Example:
            >>> str(Place.of_call("layer1.0", "__iadd__"))
            'add in layer1.0'
        """
        word = called.strip("_")
        return cls(path, _WORDS.get(word, word))

    def __str__(self) -> str:
        if not self.operation:
            return self.path or "the whole network"
        return f"{self.operation} in {self.path or 'the forward'}"


def set_places(node: fx.Node, places: Iterable[Place]) -> None:
    """Let `node` stand for `places`, each once, and for nothing else."""
    node.meta[PLACES] = tuple(dict.fromkeys(places))


def copy_places(source: fx.Node, node: fx.Node) -> None:
    """Let `node` stand for what `source` stands for."""
    set_places(node, places_of(source))


def cover_places(node: fx.Node, covered: Iterable[fx.Node]) -> None:
    """Let `node` stand for everything that the nodes `covered` stand for."""
    set_places(node, [place for part in covered for place in places_of(part)])


def places_of(node: fx.Node) -> tuple[Place, ...]:
    """Return the places of `node`; one place made from its target or name where tracing recorded none."""
    recorded: tuple[Place, ...] = node.meta.get(PLACES, ())
    return recorded or (Place(_unrecorded(node)),)


def module_path(node: fx.Node) -> str:
    """Return the path of the user's module that `node` stands for, or other words that the user understands.

    An operation that a forward writes out is "add in layer1.0", an input is "the input x". A node that stands for
    several modules gets the description of `describe_modules`. No description holds a colon.
    """
    places = places_of(node)
    return str(places[0]) if len(places) == 1 else describe_modules([node])


def describe_modules(nodes: Sequence[fx.Node]) -> str:
    """Return a short description of the user's modules that nodes of one graph stand for.

    Args:
        nodes: at least one node, in the graph's order.

    Example:
        >>> from torch import nn, zeros
        >>> from fx_passes.tracing import trace
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> net, example = nn.Sequential(block, nn.Conv2d(8, 8, 3)), zeros(1, 3, 9, 9)
        >>> nodes = list(trace(net, (example,)).graph.nodes)
        >>> describe_modules(nodes[1:3]), describe_modules(nodes[2:4])
        ('0', '0.1 to 1')
    """
    return ModuleNames({node.name: node for node in nodes[0].graph.nodes}).describe(nodes)


class ModuleNames:
    """Words for the spans of one graph; the graph is read once.

    Args:
        nodes: all nodes of the graph by name.
    """

    def __init__(self, nodes: Mapping[str, fx.Node]) -> None:
        self._nodes = nodes
        self._held = _held(filter(_computes, nodes.values()))

    def describe_names(self, names: Iterable[str]) -> str:
        """Return a short description of the modules of these nodes, as `describe` does."""
        return self.describe([self._nodes[name] for name in names])

    def describe(self, nodes: Sequence[fx.Node]) -> str:
        """Return a short description of the user's modules that nodes stand for.

        A module is covered if `nodes` holds all nodes of the graph that stand for it or for a part of it. The
        description is the smallest module around all nodes if that is covered ("layer1.0"). Otherwise it is the first
        and the last part ("layer1.0 to layer1.1.bn1"), each the largest covered module.
        """
        shown = list(dict.fromkeys(filter(_computes, nodes))) or nodes
        places = [place for node in shown for place in places_of(node)]
        if len(set(places)) == 1:
            return str(places[0])
        covered = {path for path, count in _held(shown).items() if count == self._held[path]}
        around = _common_path(places)
        if around in covered:
            return str(Place(around))
        parts = list(dict.fromkeys(_largest_covered(place, covered) for place in places))
        last = _largest_covered(places[-1], covered)
        return parts[0] if len(parts) == 1 else f"{parts[0]} to {last if last != parts[0] else parts[-1]}"


def _unrecorded(node: fx.Node) -> str:
    target = str(node.target)
    words = {
        "placeholder": "the input" if target == "input" else f"the input {target.lstrip('*')}",
        "output": "the output",
        "get_attr": f"the tensor {target}",
        "call_module": target,
    }
    return words.get(node.op, node.name)


def _computes(node: fx.Node) -> bool:
    """Say whether a node computes a tensor, as far as that is known."""
    return node.op.startswith("call") and ("tensor_meta" in node.meta or "type" not in node.meta)


def _held(nodes: Iterable[fx.Node]) -> Counter[str]:
    """Return, for each path, how many of the nodes stand for a module there or below."""
    held: Counter[str] = Counter()
    for node in nodes:
        held.update({path for place in places_of(node) for path in _around(place.path)})
    return held


def _around(path: str) -> list[str]:
    """Return the paths of the modules around a module, outermost first, and its own."""
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _common_path(places: Iterable[Place]) -> str:
    """Return the path of the smallest module around all places."""
    shared = [set(_around(place.path)) for place in places]
    return max(set.intersection(*shared), key=len)


def _largest_covered(place: Place, covered: set[str]) -> str:
    """Return words for the largest covered module around a place, or for the place itself."""
    return next((path for path in _around(place.path) if path in covered), str(place))
