"""What a kind of choice answers, and which kinds there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Generic, TypeVar

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.body import Body
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.limits import SpanLimits
from fx_passes.slots import Slot
from fx_passes.span import Piece

__all__ = ["Kind", "kind_named", "kind_of", "kinds", "register"]

C = TypeVar("C", bound=SpanChoice)


class Kind(ABC, Generic[C]):
    """One kind of choice: a rewrite of the piece of graph between two tensors.

    Attributes:
        choice: the class of its choices; `choice.kind` names the kind.
        precedence: of its choices among those of a span; of equal ones the first is taken.
        done: what was done with a span, as a participle, such as "merged".
    """

    choice: type[C]
    precedence: ClassVar[int]
    done: ClassVar[str]

    @property
    def name(self) -> str:
        """The kind's name, under which its choices are stored."""
        return self.choice.kind

    @abstractmethod
    def enumerate(self, piece: Piece, limits: SpanLimits) -> Iterator[C]:
        """Yield the choices for a piece that lie within limits, those with the original end first."""

    @abstractmethod
    def check(self, choice: C, piece: Piece) -> str:
        """Return why a choice is not possible for a piece, as a sentence's second half; empty where it is possible."""

    @abstractmethod
    def body(self, choice: C, piece: Piece) -> Body:
        """Return what takes the piece's place."""

    def slots(self, choice: C, piece: Piece) -> tuple[Slot, ...]:
        """Return the convolutions of the body whose weights are solved for."""
        return ()

    def weights(self, choice: C, piece: Piece) -> Mapping[str, AffineConv]:
        """Return the convolutions of the body that follow from the network's weights, by node, in float64."""
        return {}

    @abstractmethod
    def linearize(self, copied: GraphFacts, choice: C, piece: Piece, *, exact_border: bool) -> None:
        """Carry a choice out in a copy of the piece's graph, in trainable form; the exit's node keeps its name.

        Args:
            copied: the copy, which is changed; its names are those of the piece.
            choice: what to do.
            piece: where.
            exact_border: leave padding where it is, if the piece can be merged so.
        """

    @abstractmethod
    def merge(self, linearized: GraphFacts, choice: C) -> None:
        """Bring a linearized choice to the form of its body, in place.

        Raises:
            PlanError: the graph is not the choice's linearized form, or a weight leaves the range of its type.
        """

    def solved_nodes(self, linearized: GraphFacts, choice: C) -> tuple[fx.Node, ...]:
        """Return the nodes of a linearized graph whose convolutions have solved weights, or norms behind these.

        Raises:
            PlanError: the graph is not the choice's linearized form.
        """
        return ()

    def describe(self, choice: C) -> str:
        """Return what a choice does with its span, in the past tense, for the console and the report."""
        return self.done

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
    """Make a kind known under the name of its choices; to be used as a decorator.

    Raises:
        PlanError: another kind has that name.
    """
    name = kind.choice.kind
    if name in _REGISTERED:
        raise PlanError(f"a kind of choice called {name!r} is registered already; give the new one another name")
    _REGISTERED[name] = kind()
    return kind


def kinds(names: Sequence[str] | None = None) -> list[Kind[Any]]:
    """Return the kinds of these names, or all, by precedence.

    Raises:
        PlanError: there is no kind of a name.
    """
    chosen = _REGISTERED.values() if names is None else {name: kind_named(name) for name in names}.values()
    return sorted(chosen, key=lambda kind: kind.precedence)


def kind_named(name: object) -> Kind[Any]:
    """Return the kind of this name.

    Raises:
        PlanError: there is none.
    """
    if not isinstance(name, str) or name not in _REGISTERED:
        raise PlanError(f"kind (={name!r}) of a choice must be one of {', '.join(sorted(_REGISTERED))}")
    return _REGISTERED[name]


def kind_of(choice: SpanChoice) -> Kind[Any]:
    """Return the kind of a choice.

    Raises:
        PlanError: it is no choice of a registered kind.
    """
    if not isinstance(choice, SpanChoice) or not hasattr(choice, "kind"):
        raise PlanError(f"{choice!r} is no choice of a registered kind; take choices from enumerate_spans")
    return kind_named(choice.kind)
