"""Base class of the kinds of choices, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Generic, TypeVar

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.body import Body
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.limits import SpanLimits
from fx_passes.network_facts import NetworkFacts
from fx_passes.slots import Slot
from fx_passes.span import Piece
from fx_passes.structure import Level
from fx_passes.workload import Operator

__all__ = ["Kind", "kind_named", "kind_names", "kind_of", "kinds", "register"]

C = TypeVar("C", bound=SpanChoice)


class Kind(ABC, Generic[C]):
    """One kind of choice: a rewrite of the piece of graph between two tensors.

    Attributes:
        choice: the class of its choices; `choice.kind` names the kind.
        precedence: rank of its choices among the choices of a span, lowest first; among equally good choices the
            first is taken.
        done: past participle for what it does to a span, for example "merged".
        explanation: clause for the report that tells what happened to such a span.
        takes_one_convolution: whether its spans must be one convolution without their activations.
    """

    choice: type[C]
    precedence: ClassVar[int]
    done: ClassVar[str]
    explanation: ClassVar[str]
    takes_one_convolution: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The kind's name, under which its choices are stored."""
        return self.choice.kind

    def places(self, network: NetworkFacts, limits: SpanLimits) -> Iterator[tuple[Level, int, int]]:
        """Yield spans that need not be one convolution: a level, and the numbers of the cuts at both ends."""
        yield from ()

    @abstractmethod
    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[C]:
        """Yield the choices for a piece with layers that lie within limits, the original end first."""

    @abstractmethod
    def check(self, choice: C, piece: Piece) -> str:
        """Return why a choice is impossible for a piece with layers, as a clause; empty where it is possible."""

    def refusal(self, piece: Piece, limits: SpanLimits) -> str:
        """Return why `enumerate` yields nothing for a piece with layers, as a clause about the piece.

        Only kinds whose spans must be one convolution are asked; others tell what they leave out by `left_out`.
        """
        raise NotImplementedError(f"{type(self).__name__}.refusal")

    def left_out(self, network: NetworkFacts, limits: SpanLimits) -> Iterator[tuple[str, str]]:
        """Yield the names of layers that no choice within limits can change, each with the reason as a clause."""
        yield from ()

    @abstractmethod
    def body(self, choice: C, piece: Piece) -> Body:
        """Return the body that takes the piece's place."""

    def decided(self, choice: C, kept: Callable[[str, int], tuple[int, ...]]) -> C:
        """Return a choice that says which channels stay, if it removes any.

        Args:
            choice: the choice.
            kept: returns the numbers of the channels that stay at a node, by its name and their count.
        """
        return choice

    def takes_more(self, choice: C, other: SpanChoice) -> bool:
        """Say whether a choice removes all that another choice of its span removes, and more.

        It loses at least as much, so it is worth a try only where it is faster.
        """
        return False

    def operators(self, choice: C, piece: Piece) -> tuple[Operator, ...]:
        """Return the operators of the piece as a runtime runs them once the choice is carried out."""
        return piece.graph.workload.of_body(self.body(choice, piece))

    def slots(self, choice: C, piece: Piece) -> tuple[Slot, ...]:
        """Return the convolutions of the body whose weights are solved for."""
        return ()

    def weights(self, choice: C, piece: Piece) -> Mapping[str, AffineConv]:
        """Return, by node, the body's convolutions whose weights follow from the network's, in float64."""
        return {}

    @abstractmethod
    def linearize(self, copied: GraphFacts, choice: C, piece: Piece, *, exact_border: bool) -> None:
        """Carry out a choice in a copy of the piece's graph, in trainable form; the exit node keeps its name.

        Args:
            copied: the copy, which is changed; its nodes have the names of the original's nodes.
            choice: the choice to carry out.
            piece: the piece of the original graph.
            exact_border: whether to leave padding in place if the piece can be merged that way.
        """

    @abstractmethod
    def merge(self, linearized: GraphFacts, choice: C) -> None:
        """Bring a linearized choice to the form of its body, in place.

        Raises:
            PlanError: the graph is not the choice's linearized form, or a weight leaves the range of its type.
        """

    def solved_nodes(self, linearized: GraphFacts, choice: C) -> tuple[fx.Node, ...]:
        """Return the nodes of the convolutions with solved weights in a linearized graph, or of the norms behind them.

        Raises:
            PlanError: the graph is not the choice's linearized form.
        """
        return ()

    def describe(self, choice: C) -> str:
        """Return words for what a choice did to its span, for the console and the report."""
        return self.done

    def details(self, choice: C, piece: Piece) -> str:
        """Return words for what a choice did to each of the user's modules; empty where `describe` says it all."""
        return ""

    def encode(self, choice: C) -> dict[str, Any]:
        """Return the fields of a choice as JSON values."""
        return asdict(choice)

    @abstractmethod
    def decode(self, fields: Mapping[str, Any]) -> C:
        """Return the choice that `encode` wrote.

        Raises:
            PlanError: a field is missing, unknown or malformed.
        """


_REGISTERED: dict[str, Kind[Any]] = {}


def register(kind: type[Kind[Any]]) -> type[Kind[Any]]:
    """Register a kind under the name of its choices; a class decorator.

    Raises:
        PlanError: another kind has that name.
    """
    name = kind.choice.kind
    if name in _REGISTERED:
        raise PlanError(f"a kind of choice called {name!r} is registered already; give the new one another name")
    _REGISTERED[name] = kind()
    return kind


def kinds(names: Sequence[str] | None = None) -> list[Kind[Any]]:
    """Return the kinds with these names, or all, by precedence.

    Raises:
        PlanError: a name is not registered.
    """
    named = _REGISTERED if names is None else dict.fromkeys(names)
    return sorted(map(kind_named, named), key=lambda kind: kind.precedence)


def kind_names() -> list[str]:
    """Return the names of all kinds, by precedence."""
    return sorted(_REGISTERED, key=lambda name: _REGISTERED[name].precedence)


def kind_named(name: object) -> Kind[Any]:
    """Return the kind with this name.

    Raises:
        PlanError: the name is not registered.
    """
    if not isinstance(name, str) or name not in _REGISTERED:
        raise PlanError(f"kind (={name!r}) must be one of {', '.join(sorted(_REGISTERED))}")
    return _REGISTERED[name]


def kind_of(choice: SpanChoice) -> Kind[Any]:
    """Return the kind of a choice.

    Raises:
        PlanError: it is no choice of a registered kind.
    """
    if not isinstance(choice, SpanChoice) or not hasattr(choice, "kind"):
        raise PlanError(f"{choice!r} is no choice of a registered kind; take choices from enumerate_spans")
    return kind_named(choice.kind)
