"""Width alone: no layer goes, and channels that live inside spans are removed."""

from __future__ import annotations

from dataclasses import replace

from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

register(
    Method(
        "width",
        "channels removed inside spans and nothing else, exact frontier, plans refitted",
        replace(DEFAULT_LIMITS, kinds=("narrow",)),
        fits=True,
    )
)
