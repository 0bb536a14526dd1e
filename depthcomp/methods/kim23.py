"""Method of Kim et al., ICML 2023 (arXiv 2301.12187).

Activations become identity, and the convolutions between two kept activations merge exactly. An exact two-stage
programme chooses by latency and importance. A merge without an activation at its end may get one.

Deviations: no merge loses the activation at its end. Spans are bounded as for all methods. A measured search replaces
the rounding of the table to a grid.
"""

from __future__ import annotations

from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from fx_passes import SpanLimits

register(
    Method(
        "kim23",
        "exact merges, ends original or inserted, exact frontier",
        SpanLimits(layer_pruning=False, other_ends=("inserted",), kinds=("merge",)),
        importance="kim23",
    )
)
