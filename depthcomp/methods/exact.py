"""Default method: fits, merges and drops, chosen by an exact solver."""

from __future__ import annotations

from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

register(Method("depthcomp", "fits, merges and drops, exact frontier, plans refitted", DEFAULT_LIMITS, fits=True))
