"""Registry of things by name, each registered by a module of its own in one folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from depthcomp.errors import DepthCompError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Map names to things, in alphabetical order.

    All modules of the folder are imported when the registry is first read, so that a new file is found by itself.

    Args:
        folder: the dotted name of the package whose modules register.

    Example:
        >>> backends: Registry[str] = Registry("depthcomp.export")
        >>> backends.register("one", "a thing")
        'a thing'
        >>> list(backends)
        ['one']
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, T] = {}
        self._loading = self._complete = False

    def register(self, name: str, thing: T) -> T:
        """Add a thing and return it.

        Raises:
            DepthCompError: the name is taken.
        """
        if name in self._known:
            raise DepthCompError(f"{name!r} is registered in {self._folder} already; choose another name")
        self._known[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._loaded()))

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, T]:
        """Return everything that is registered, once all modules of the folder are imported."""
        if not self._loading and not self._complete:
            self._loading = True  # a module may read the registry while it is imported
            try:
                for module in pkgutil.iter_modules(import_module(self._folder).__path__):
                    import_module(f"{self._folder}.{module.name}")
                self._complete = True
            finally:
                self._loading = False
        return self._known
