"""Depth alone: all kinds of choices but `narrow`, so that channels stay."""

from __future__ import annotations

from dataclasses import replace

from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

register(
    Method(
        "depth",
        "spans merged, fitted or dropped and nothing else, exact frontier, plans refitted",
        replace(DEFAULT_LIMITS, kinds=("merge", "fit", "drop")),
        fits=True,
    )
)
