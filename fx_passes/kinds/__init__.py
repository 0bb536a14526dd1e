"""Kinds of choices, one file each: what may be done with a span, how it is carried out, and how it is stored.

A kind is found through the registry alone. To add one, write a file here, or anywhere that is imported, with a choice
(a dataclass derived from `SpanChoice`) and a kind that is decorated by `register`.
"""

import pkgutil
from importlib import import_module

from fx_passes.kinds.codec import decode_choice, encode_choice
from fx_passes.kinds.registry import Kind, kind_of, kinds, register

__all__ = ["Kind", "decode_choice", "encode_choice", "kind_of", "kinds", "register"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
