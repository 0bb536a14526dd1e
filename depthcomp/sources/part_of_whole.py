"""A part of a network that is compressed alone: what the whole feeds it, and the whole with the part put back."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcomp.data.batches import MAX_IMAGES, Data, items_of
from depthcomp.data.items import images_of
from depthcomp.errors import CaptureError, DataError
from depthcomp.sources.module_names import Modules, matched_modules
from depthcomp_errors.first_line import first_line

__all__ = ["PartOfWhole"]


class _ReachedError(Exception):
    """The forward of the whole has come to the part, and need not go on."""


class PartOfWhole:
    """A module of a network that a user wants to compress, and the network around it.

    Args:
        whole: the network; it is not changed.
        name: the module's path in it, such as "backbone" or "backbone.body".

    Attributes:
        whole: a copy of the network in evaluation mode.
        module: the part of this copy.
        notes: sentences on inputs that were left out.

    Raises:
        CaptureError: the whole has no such module.
    """

    def __init__(self, whole: nn.Module, name: str) -> None:
        if not isinstance(name, str) or any(sign in name for sign in "*?["):
            raise CaptureError(
                f"module (={name!r}) must be the path of one module; compress several one after the other, the next "
                "one in `result.whole` of the one before"
            )
        if not isinstance(whole, nn.Module):
            raise CaptureError(f"model is of type {type(whole).__name__} and must be a torch.nn.Module to have parts")
        self.name, self.notes = name, list[str]()
        self.whole = copy.deepcopy(whole).eval()
        matched_modules(whole, name, "module")
        self.module: nn.Module = self.whole.get_submodule(name)

    def example(self, example_inputs: Any) -> Tensor | None:
        """Return the input of the part when the whole runs on its example inputs; None without example inputs.

        Raises:
            CaptureError: the whole fails on them, or the part's input is not one batch of images.
        """
        return None if example_inputs is None else self.read(example_inputs)

    def read(self, inputs: Any) -> Tensor:
        """Return the input of the part when the whole runs on its example inputs; errors are those of `example`."""
        if isinstance(inputs, Mapping):
            return self._fed((), inputs, "example_inputs")
        return self._fed(inputs if isinstance(inputs, tuple) else (inputs,), {}, "example_inputs")

    def inside(self, names: Modules) -> tuple[str, ...]:
        """Return the paths in the part of modules of the whole, by names or patterns; those elsewhere stay anyway.

        Raises:
            CaptureError: a name matches no module of the whole, or the part is among them.
        """
        paths = matched_modules(self.whole, names, "exclude")
        around = [path for path in paths if f"{self.name}.".startswith(f"{path}.")]
        if around:
            raise CaptureError(f"exclude names {around[0]}, and module (={self.name!r}) is to be compressed; give one")
        return tuple(path.removeprefix(f"{self.name}.") for path in paths if path.startswith(f"{self.name}."))

    def data(self, data: Data | None, argument: str) -> list[Tensor] | None:
        """Return the inputs of the part for up to 512 images of the whole's data; None without data.

        The whole takes each item as it is: a tensor, a list of images, or a dict of arguments. Labels y of (x, y) are
        dropped. The part may get batches of several sizes. The most frequent size is kept, and `notes` counts the rest.

        Raises:
            CaptureError: the whole fails on an item, or the part's input is not one batch of images.
            DataError: the data cannot be read, or are empty.
        """
        if data is None:
            return None
        found: list[Tensor] = []
        for item in items_of(data, argument):
            args, kwargs = self._arguments(item, argument)
            found.append(self._fed(args, kwargs, argument))
            if sum(map(len, found)) >= MAX_IMAGES:
                break
        if not found:
            raise DataError(f"{argument} holds no items; pass an iterable of what {type(self.whole).__name__} takes")
        shape, count = Counter(batch.shape[1:] for batch in found).most_common(1)[0]
        if count < len(found):
            self.notes.append(
                f"{len(found) - count} of {len(found)} batches of {argument} reach {self.name} in another size than "
                f"{tuple(shape)}, and are left out; give images of one size to use all"
            )
        return [batch for batch in found if batch.shape[1:] == shape]

    def put_back(self, compressed: nn.Module) -> nn.Module:
        """Return a copy of the whole in evaluation mode, with a compressed network in the part's place."""
        whole = copy.deepcopy(self.whole)
        whole.set_submodule(self.name, copy.deepcopy(compressed))
        return whole.eval()

    def _arguments(self, item: Any, argument: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments of the whole's forward for one item of data, by position and by name."""
        if isinstance(item, Mapping):
            taken = inspect.signature(self.whole.forward).parameters
            return ((), item) if set(item) <= set(taken) else ((images_of(item, argument),), {})
        if isinstance(item, Sequence) and item and not isinstance(item, str) and not _is_list_of_images(item):
            return self._arguments(item[0], argument)
        return (item,), {}

    def _fed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], argument: str) -> Tensor:
        """Return the input of the part when the whole runs on these arguments."""
        read: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append((args, kwargs))
            raise _ReachedError

        with self.module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True), torch.no_grad():
            try:
                self.whole(*args, **kwargs)
            except _ReachedError:
                pass
            except Exception as error:
                raise CaptureError(
                    f"{type(self.whole).__name__} fails on {argument} ({type(error).__name__}: {first_line(error)}); "
                    "with module=, give what the whole network takes"
                ) from error
        if not read:
            raise CaptureError(
                f"the forward of {type(self.whole).__name__} does not call {self.name}; name a module that it calls"
            )
        return self._one_batch(*read[0])

    def _one_batch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        inputs = [*args, *(value for value in kwargs.values() if value is not None)]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
            kinds = ", ".join(
                f"a tensor {tuple(each.shape)}" if isinstance(each, Tensor) else f"a {type(each).__name__}"
                for each in inputs
            )
            raise CaptureError(
                f"{self.name} reads {kinds or 'nothing'}, and must read one batch of images (n, c, h, w); "
                "name a part of it that does"
            )
        return inputs[0].clone()


def _is_list_of_images(item: Sequence[Any]) -> bool:
    return all(isinstance(each, Tensor) and each.ndim == 3 and each.is_floating_point() for each in item)
