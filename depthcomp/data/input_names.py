"""Names of a network's inputs, which tell inputs from labels in an item of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from depthcomp.data.forward_arguments import ForwardArguments
from depthcomp.data.input_kind import IMAGES, input_rank
from depthcomp.data.inputs import Inputs
from depthcomp.data.items import IMAGE_NAMES, LABEL_NAMES, images_of, labels_of
from depthcomp.errors import CaptureError, DataError

__all__ = ["ONE_IMAGE", "InputNames"]


@dataclass(frozen=True, slots=True)
class InputNames:
    """Names of the arguments of a network's forward that data give, in the forward's order.

    A tuple (x1, x2, y) or ((x1, x2), y) holds the inputs in this order, then the labels. A dict holds them by name,
    and labels as `label`, `labels`, `target`, `targets` or `y`.

    Attributes:
        names: the names; none for a network of one input without a name. Of one input an item of data need not have
            the name: what is the image is then told by its looks.
        by_name: whether the forward takes them by name only, as arguments before them keep their defaults.
        undecided: other arguments, with defaults, of which nobody has said whether data give them.
        rank: number of dimensions of a batch of the network's images, signals or volumes.
    """

    names: tuple[str, ...] = ()
    by_name: bool = False
    undecided: frozenset[str] = frozenset()
    rank: int = IMAGES

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any = None, inputs: Sequence[str] | None = None) -> InputNames:
        """Return the names for a model: as the user names them, as the example has them, or by the forward's arguments.

        Arguments without a default are inputs. Where at most one is, the first argument is the only input.

        Args:
            model: the model.
            example_inputs: a tensor, a tuple of tensors in the order of the forward's arguments, or a dict of them.
            inputs: the names; None where the user says none.

        Raises:
            CaptureError: the forward has no argument of a name, or the example has another number of tensors.
        """
        taken, rank = ForwardArguments.of(model), input_rank(model)
        if inputs is None and isinstance(example_inputs, Mapping):
            inputs = list(example_inputs)
        if inputs is not None:
            names = taken.ordered(type(model).__name__, inputs)
            _require_given(names, example_inputs)
            return cls(names, by_name=names != taken.named[: len(names)], rank=rank)
        count = len(example_inputs) if isinstance(example_inputs, tuple | list) else 1
        if count > 1:
            return cls(taken.first(count), rank=rank)
        if len(taken.required) > 1:
            _require_given(taken.required, example_inputs)
            return cls(taken.required, by_name=taken.required != taken.named[: len(taken.required)], rank=rank)
        others = frozenset(taken.named[1:]) - {*LABEL_NAMES, *IMAGE_NAMES}
        return cls(taken.required, undecided=others, rank=rank)

    @property
    def several(self) -> bool:
        """Whether the network has more than one input."""
        return len(self.names) > 1

    def example(self, example_inputs: Any) -> Any:
        """Return an example as a tuple in the forward's order where it is a dict."""
        return tuple(example_inputs[n] for n in self.names) if isinstance(example_inputs, Mapping) else example_inputs

    def given(self, inputs: Inputs) -> Any:
        """Return inputs as `fx_passes.capture` takes them, by position or by name."""
        return dict(zip(self.names, inputs.tensors, strict=True)) if self.by_name else inputs.tensors

    def parts(self, item: Any, argument: str) -> tuple[tuple[Any, ...], Any]:
        """Return the inputs of an item of data as it holds them, and its labels; None where it has none.

        Raises:
            DataError: the item does not hold the inputs, or it is unclear what else is one.
        """
        if isinstance(item, Inputs):
            return item.tensors, None
        if self.several:
            return self._several(item, argument)
        if isinstance(item, Mapping):
            self._require_decided(item, argument)
            if self.names and self.names[0] in item:
                return (item[self.names[0]],), labels_of({k: v for k, v in item.items() if k != self.names[0]})
        return (images_of(item, argument),), labels_of(item)

    def _several(self, item: Any, argument: str) -> tuple[tuple[Any, ...], Any]:
        if isinstance(item, Mapping):
            missing = [name for name in self.names if name not in item]
            if not missing:
                rest = {key: value for key, value in item.items() if key not in self.names}
                return tuple(item[name] for name in self.names), labels_of(rest)
            raise self._unfit(f"a dict without {' and '.join(missing)}", argument)
        if not isinstance(item, list | tuple) or not item:
            raise self._unfit(f"a {type(item).__name__}", argument)
        if isinstance(item[0], Mapping | list | tuple):
            return self._several(item[0], argument)[0], labels_of(item)
        count = len(self.names)
        if len(item) < count:
            raise self._unfit(f"{len(item)} parts", argument)
        return tuple(item[:count]), item[count] if len(item) > count else None

    def _unfit(self, what: str, argument: str) -> DataError:
        names = ", ".join(self.names)
        return DataError(
            f"an item of {argument} is {what}, but the network takes {names}; yield ({names}), (({names}), labels) or "
            "a dict with these names, or say with inputs= which arguments the data give"
        )

    def _require_decided(self, item: Mapping[str, Any], argument: str) -> None:
        found = [key for key, value in item.items() if key in self.undecided and isinstance(value, Tensor)]
        if found:
            raise DataError(
                f"an item of {argument} holds {found[0]}, which the network's forward takes but does not need; say "
                f"with inputs= which arguments the data give, such as inputs=(..., {found[0]!r}), or take it out"
            )


ONE_IMAGE = InputNames()
"""The names for a network of one input."""


def _require_given(names: Sequence[str], example_inputs: Any) -> None:
    """Refuse an example with other tensors than the network's inputs."""
    if example_inputs is None or (isinstance(example_inputs, Mapping) and set(example_inputs) == set(names)):
        return
    count = len(example_inputs) if isinstance(example_inputs, tuple | list) else 1
    if isinstance(example_inputs, Mapping) or count != len(names):
        by_name = isinstance(example_inputs, Mapping)
        found = ", ".join(example_inputs) if by_name else f"{count} input{'s' if count > 1 else ''}"
        raise CaptureError(
            f"example_inputs holds {found}, but the network takes {', '.join(names)}; give a tuple in this order, or a "
            "dict"
        )
