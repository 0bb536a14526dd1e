"""Default method: all kinds of choices, chosen by an exact solver."""

from __future__ import annotations

from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

register(Method("depthcomp", "all kinds of choices, exact frontier, plans refitted", DEFAULT_LIMITS, fits=True))
