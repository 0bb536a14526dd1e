"""Arguments that a network's forward takes and needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from torch import fx, nn

from depthcomp.errors import CaptureError
from fx_passes.symbolic import argument_names

__all__ = ["ForwardArguments"]


@dataclass(frozen=True, slots=True)
class ForwardArguments:
    """Arguments of a network's forward.

    Attributes:
        forward: the forward.
        named: those with a name of their own.
        most: how many can be given by position; None for any number.
        required: those of them without a default.
        open: whether it takes any other name, by `**kwargs`.
    """

    forward: Callable[..., Any]
    named: tuple[str, ...]
    most: int | None
    required: tuple[str, ...]
    open: bool

    @classmethod
    def of(cls, model: nn.Module) -> ForwardArguments:
        """Return the arguments of a model's forward; those of a graph are its inputs."""
        if isinstance(model, fx.GraphModule):
            found = model.graph.find_nodes(op="placeholder")
            names = tuple(str(node.target) for node in found)
            needed = tuple(str(node.target) for node in found if not node.args)
            return cls(type(model).forward, names, len(names), needed, False)
        parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
        ways = [each.kind for each in parameters]
        named = [each for each in parameters if each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        return cls(
            type(model).forward,
            tuple(each.name for each in named),
            None if Parameter.VAR_POSITIONAL in ways else sum(way < Parameter.VAR_POSITIONAL for way in ways),
            tuple(each.name for each in named if each.default is Parameter.empty),
            Parameter.VAR_KEYWORD in ways,
        )

    def first(self, count: int) -> tuple[str, ...]:
        """Return the names of the first arguments, which an example gives by position.

        Raises:
            CaptureError: the forward takes fewer.
        """
        if self.most is not None and count > self.most:
            raise CaptureError(
                f"example_inputs holds {count} inputs, but the network takes {', '.join(self.named) or 'none'} and no "
                "more by position; give a tensor for each, or a dict"
            )
        return tuple(argument_names(self.forward, count))

    def ordered(self, model: str, names: Sequence[str]) -> tuple[str, ...]:
        """Return names in the order of the forward's arguments.

        Raises:
            CaptureError: a name is no argument, is there twice, or one without a default is missing.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise CaptureError(
                f"inputs (={names!r}) must be different names of arguments, such as ('image', 'mask'); pass a tuple"
            )
        unknown = [name for name in names if name not in self.named and not self.open]
        missing = [name for name in self.required if name not in names]
        if unknown or missing or not names:
            what = f"has no {unknown[0]!r}" if unknown else f"needs {', '.join(missing) or 'an input'}, too"
            raise CaptureError(
                f"inputs {', '.join(names)} do not fit {model}: its forward takes {', '.join(self.named)} and {what}; "
                "name the arguments that example_inputs and data give"
            )
        return tuple(sorted(names, key=[*self.named, *names].index))
