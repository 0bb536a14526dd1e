"""The kind `narrow`: the layers of a span stay, and channels that live inside it are fewer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from depthcomp_errors import PlanError
from fx_passes.body import Body, copied_body
from fx_passes.channels.layout import Layout, layouts_in
from fx_passes.channels.makers import maker_of
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.inner_channels import InnerFamily, read_power
from fx_passes.kinds.fields import parse_node, read_choice
from fx_passes.kinds.linearized import not_linearized, span_ends
from fx_passes.kinds.registry import Kind, register
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import module_path
from fx_passes.network_facts import NetworkFacts
from fx_passes.operators import called_module
from fx_passes.slot_layers import can_be_solved, channel_axis, operator_at
from fx_passes.slots import Slot, Width
from fx_passes.span import Piece
from fx_passes.structure import Level
from fx_passes.workload import Operator

__all__ = ["Narrow"]

SHARES = 8  # widths are offered in eighths of the original's
MULTIPLES = (32, 16, 8)  # of channels; each eighth is rounded to the first of them that is near
NEAR = 1 / 3  # of an eighth


@dataclass(frozen=True, slots=True)
class Narrow(SpanChoice):
    """The layers of a span stay, and channels that live inside it are fewer.

    Choices that differ only in `kept` are equal: which channels stay is decided with the weights.

    Attributes:
        widths: tensors inside the span by the names of their nodes, each with the number of channels that it keeps.
        kept: for each of these tensors, the numbers of the channels that stay; empty where that is not decided yet.
    """

    kind: ClassVar[str] = "narrow"
    widths: tuple[Width, ...]
    kept: tuple[tuple[int, ...], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"narrow {self.place} to {', '.join(f'{count} channels at {tensor}' for tensor, count in self.widths)}"


@register
class NarrowKind(Kind[Narrow]):
    """Removes inner channels; `fx_passes.inner_channels` finds them.

    Where a choice does not say which channels stay, those do whose weights in the layers that read them are largest.
    """

    choice = Narrow
    precedence = 40
    done = "narrowed"
    explanation = "the layers stayed, and channels that live only inside the span were removed"
    takes_one_convolution = False

    def places(self, network: NetworkFacts, limits: SpanLimits) -> Iterator[tuple[Level, int, int]]:
        """Yield the spans with inner channels."""
        for inner in network.inner_channels.values():
            if inner.stop - inner.start <= limits.longest_span:
                yield inner.level, inner.start, inner.stop

    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[Narrow]:
        """Yield a choice for each share of the channels, the largest first; tensors with too few keep all."""
        families = [each for each in _families(piece).values() if not _reader_without_refit(piece.graph, each)]
        shares = ([(each, _width(each, share)) for each in families] for share in reversed(range(1, SHARES)))
        fewer = (tuple((each.tensor, count) for each, count in several if count < len(each.ids)) for several in shares)
        for widths in dict.fromkeys(fewer):
            if widths and not _fit_into_less(piece, {name for name, _ in widths}):
                yield Narrow(piece.entry, piece.exit, widths)

    def check(self, choice: Narrow, piece: Piece) -> str:
        """Return why a piece cannot keep the choice's channels; empty where it can."""
        known = _families(piece)
        if not choice.widths or len(dict(choice.widths)) < len(choice.widths):
            return "it names no tensor, or one twice"
        if choice.kept and len(choice.kept) != len(choice.widths):
            return f"it keeps channels of {len(choice.kept)} tensors and names {len(choice.widths)}"
        for (name, count), kept in itertools.zip_longest(choice.widths, choice.kept):
            if name not in known:
                return f"no channels live inside it at {_words(piece, name)}"
            reason = _width_obstacle(known[name], count) or _kept_obstacle(known[name], count, kept)
            if reason:
                return f"{_words(piece, name)} {reason}"
        return ""

    def left_out(self, network: NetworkFacts, limits: SpanLimits) -> Iterator[tuple[str, str]]:
        """Yield the layers that make channels, all of which stay."""
        known = _staying(network, limits)
        for name, node in network.nodes.items():
            reasons = _reasons(network, name, known)
            if reasons and all(reasons) and maker_of(called_module(network.gm, node)) is not None:
                yield name, f"its channels stay, as {' and '.join(dict.fromkeys(reasons))}"

    def body(self, choice: Narrow, piece: Piece) -> Body:
        """Return the span with all channels; layers that read inner ones have new weights, zero for removed ones."""
        return copied_body(piece.graph.nodes, piece.entry, piece.nodes, piece.exit, self.slots(choice, piece))

    def slots(self, choice: Narrow, piece: Piece) -> tuple[Slot, ...]:
        """Return the layers that read the channels."""
        graph, known = piece.graph, _families(piece)
        readers = dict.fromkeys(reader for name, _ in choice.widths for reader in known[name].readers)
        return tuple(
            Slot(
                name, graph.nodes[name].all_input_nodes[0].name, name, operator_at(graph.gm, graph.nodes[name]),
                kept=True, widths=choice.widths, axis=channel_axis(graph.gm, graph.nodes[name]),
            )
            for name in sorted(readers, key=graph.order.__getitem__)
            if can_be_solved(graph.gm, graph.nodes[name])
        )  # fmt: skip

    def decided(self, choice: Narrow, kept: Callable[[str, int], tuple[int, ...]]) -> Narrow:
        """Return the choice with the channels that stay."""
        return replace(choice, kept=tuple(kept(*width) for width in choice.widths))

    def takes_more(self, choice: Narrow, other: SpanChoice) -> bool:
        """Say whether a choice keeps fewer channels of the same tensors of a span."""
        if not isinstance(other, Narrow) or (choice.entry, choice.exit) != (other.entry, other.exit):
            return False
        own, wider = dict(choice.widths), dict(other.widths)
        return own != wider and own.keys() == wider.keys() and all(own[name] <= wider[name] for name in own)

    def operators(self, choice: Narrow, piece: Piece) -> tuple[Operator, ...]:
        """Return the operators of the span with fewer channels."""
        graph, fewer = piece.graph, _fewer(choice, piece)
        return tuple(
            graph.workload.kept[name].without(fewer[graph.nodes[name].all_input_nodes[0].name], fewer[name])
            for name in piece.nodes
            if name in graph.workload.kept
        )

    def linearize(self, copied: GraphFacts, choice: Narrow, piece: Piece, *, exact_border: bool) -> None:
        """Remove the channels."""
        piece.graph.channels.narrow(copied.gm, piece.nodes, _removed(choice, piece))

    def merge(self, linearized: GraphFacts, choice: Narrow) -> None:
        """Check that the tensors have the choice's widths; nothing is left to do."""
        span_ends(linearized, choice)
        for name, count in choice.widths:
            node = linearized.nodes.get(name)
            if node is None or count not in node.meta["tensor_meta"].shape:
                where = repr(name) if node is None else module_path(node)
                raise not_linearized(choice, f"{where} has not {count} channels")

    def describe(self, choice: Narrow) -> str:
        """Return words for the channels that are left."""
        return f"{self.done} to {', '.join(str(count) for _, count in choice.widths)} channels"

    def details(self, choice: Narrow, piece: Piece) -> str:
        """Return the channels of each layer that makes fewer, before and after."""
        graph, texts = piece.graph, list[str]()
        for name, count in _fewer(choice, piece).items():
            layer, layout = called_module(graph.gm, graph.nodes[name]), graph.channels.made[name]
            if maker_of(layer) is not None and isinstance(layout, Layout):
                texts.append(f"{module_path(graph.nodes[name])} {len(layout.ids)} to {len(layout.ids) - count}")
        return f"channels: {', '.join(texts)}"

    def encode(self, choice: Narrow) -> dict[str, Any]:
        """Return the fields; `kept` only where it is decided."""
        stored: dict[str, Any] = asdict(choice)
        return stored if choice.kept else {name: value for name, value in stored.items() if name != "kept"}

    def decode(self, fields: Mapping[str, Any]) -> Narrow:
        """Return the choice with these stored fields."""
        parsers = {"entry": parse_node, "exit": parse_node, "widths": _parse_widths, "kept": _parse_kept}
        return read_choice(Narrow, fields, parsers)


def _families(piece: Piece) -> dict[str, InnerFamily]:
    """Return the channels that can be removed inside a piece, by tensor."""
    inner = piece.graph.inner_channels.get((piece.entry, piece.exit))
    return {} if inner is None else {family.tensor: family for family in inner.families}


def _reader_without_refit(graph: GraphFacts, family: InnerFamily) -> str:
    """Return the reader of a family that cannot be refitted, as the user's module; empty where all can."""
    readers = (graph.nodes[name] for name in family.readers)
    return next((module_path(node) for node in readers if not can_be_solved(graph.gm, node)), "")


def _staying(graph: NetworkFacts, limits: SpanLimits) -> dict[int, str]:
    """Return why channels stay, as a clause, by id."""
    apart = f"the layers that make and read them are more than {limits.longest_span} units apart"
    staying = dict.fromkeys(range(graph.channels.count), apart) | graph.staying_channels
    for inner in graph.inner_channels.values():
        for family in inner.families if inner.stop - inner.start <= limits.longest_span else ():
            staying |= dict.fromkeys(family.ids, _not_offered(graph, family))
    return staying


def _not_offered(graph: GraphFacts, family: InnerFamily) -> str:
    """Return why no smaller width of a family is offered, as a clause; empty where some are."""
    reader = _reader_without_refit(graph, family)
    if reader:
        return f"{reader} reads them and cannot be refitted"
    offers = any(_width(family, share) < len(family.ids) for share in range(1, SHARES))
    return "" if offers else f"there are {len(family.ids)}, too few for a smaller width to be offered"


def _fit_into_less(piece: Piece, tensors: Set[str]) -> bool:
    """Say whether a smaller span holds the inner channels of all these tensors."""
    places = piece.graph.inner_channels
    own = places[piece.entry, piece.exit]
    return any(
        own.start <= other.start and other.stop <= own.stop and other.level is own.level and other is not own
        for other in places.values()
        if tensors <= {family.tensor for family in other.families}
    )


def _reasons(graph: NetworkFacts, name: str, staying: Mapping[int, str]) -> list[str]:
    """Return why each channel of the tensor at a node stays, empty for those that can be removed."""
    layout = graph.channels.made.get(name)
    return [staying[label] for label in layout.ids.tolist()] if isinstance(layout, Layout) else []


def _width(family: InnerFamily, share: int) -> int:
    """Return the number of channels that stay for a share of them, a round number where steps allow it."""
    wanted = _rounded(len(family.ids) * share / SHARES, NEAR * len(family.ids) / SHARES)
    staying = len(family.ids) - family.channels
    steps = max(round((wanted - staying) / family.step), 1)
    return min(staying + steps * family.step, len(family.ids))


def _rounded(count: float, near: float) -> int:
    """Return a round number near a count: kernels compute channels in blocks, of 8 to 32 on most processors."""
    several = [max(round(count / multiple), 1) * multiple for multiple in MULTIPLES]
    return next((number for number in several if abs(number - count) <= near), several[-1])


def _width_obstacle(family: InnerFamily, count: int) -> str:
    """Return why a tensor cannot keep so many channels; empty where it can."""
    staying = len(family.ids) - family.channels
    if not max(staying, 1) <= count <= len(family.ids) or (count - staying) % family.step:
        least = staying or family.step
        return f"has {len(family.ids)} channels, and can keep {least} or any {family.step} more"
    return ""


def _kept_obstacle(family: InnerFamily, count: int, kept: Sequence[int] | None) -> str:
    """Return why these cannot be the channels that stay; empty where they can."""
    if kept is None:
        return ""
    chosen, numbers = set(kept), range(len(family.ids))
    gone = {family.ids[number] for number in numbers if number not in chosen}
    if chosen <= set(numbers) and len(chosen) == len(kept) == count:
        if -1 not in gone and all(family.ids[number] not in gone for number in chosen):
            return ""
        return f"cannot lose the other channels than {sorted(chosen)}, as some of them must stay, or go together"
    return f"keeps {count} channels, and kept (={sorted(chosen)}) must be {count} of 0 to {len(numbers) - 1}"


def _words(piece: Piece, name: str) -> str:
    return module_path(piece.graph.nodes[name]) if name in piece.graph.nodes else repr(name)


def _removed(choice: Narrow, piece: Piece) -> set[int]:
    """Return the ids of the channels that a choice removes."""
    known, removed = _families(piece), set[int]()
    for (name, count), kept in itertools.zip_longest(choice.widths, choice.kept):
        family = known[name]
        if kept is None:
            removed |= _gone(family, count, read_power(piece.graph, piece.graph.channels, family))
        else:
            removed |= set(family.ids) - {family.ids[number] for number in kept}
    return removed


def _fewer(choice: Narrow, piece: Piece) -> Counter[str]:
    """Return how many channels each tensor loses, by node; which ones they are makes no difference."""
    known, made, fewer = _families(piece), piece.graph.channels.made, Counter[str]()
    for tensor, count in choice.widths:
        gone = _gone(known[tensor], count, {})
        for name in known[tensor].nodes:
            layouts = layouts_in([made[name]])
            fewer[name] += sum(label in gone for layout in layouts for label in layout.ids.tolist())
    return fewer


def _gone(family: InnerFamily, count: int, power: Mapping[int, float]) -> set[int]:
    """Return the ids that go where a tensor keeps `count` channels: those of least power."""
    labels = sorted(set(family.ids) - {-1}, key=lambda label: (power.get(label, 0.0), -label))
    return set(labels[: (len(family.ids) - count) // family.step])


def _parse_widths(field: str, stored: Any) -> tuple[Width, ...]:
    """Return names of tensors with numbers of channels."""
    pairs: Sequence[Any] = stored if isinstance(stored, list | tuple) else [""]
    if not all(isinstance(pair, list | tuple) and list(map(type, pair)) == [str, int] for pair in pairs):
        raise PlanError(f"{field} (={stored!r}) of a choice must be a list of pairs of a tensor's name and a number")
    return tuple((name, count) for name, count in pairs)


def _parse_kept(field: str, stored: Any) -> tuple[tuple[int, ...], ...]:
    """Return numbers of channels for each tensor."""
    lists: Sequence[Any] = stored if isinstance(stored, list | tuple) else [""]
    if not all(isinstance(numbers, list | tuple) and all(type(n) is int for n in numbers) for numbers in lists):
        raise PlanError(f"{field} (={stored!r}) of a choice must be lists of channel numbers")
    return tuple(map(tuple, lists))
