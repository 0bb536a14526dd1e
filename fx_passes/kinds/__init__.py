"""Kinds of choices, one file each: what a span may become, how to carry that out, and how to store it.

The registry finds every kind. To add one, write a file in this folder, or in any module that is imported. It holds a
choice (a dataclass derived from `SpanChoice`) and a kind decorated with `register`.
"""

import pkgutil
from importlib import import_module

from fx_passes.kinds.codec import decode_choice, encode_choice
from fx_passes.kinds.registry import Kind, kind_names, kind_of, kinds, register

__all__ = ["Kind", "decode_choice", "encode_choice", "kind_names", "kind_of", "kinds", "register"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
