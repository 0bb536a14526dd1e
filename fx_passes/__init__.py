"""Graph rewriting of CNNs: capture a network, analyse its structure, rewrite it by a plan.

`capture` turns a traceable network into a canonical graph. `structure_tree` and `enumerate_spans` say which parts can
be compressed, and why the others cannot. `free_merges` finds the merges that change no output. `linearize` carries out
a plan in trainable form, and `merge` collapses the result into a shallower network with equal outputs. Each kind of
choice has one file in `fx_passes.kinds`.
"""

from fx_passes.body import Body
from fx_passes.capture import capture
from fx_passes.choice import SpanChoice
from fx_passes.free_merges import free_merges
from fx_passes.kinds.drop import Drop
from fx_passes.kinds.fit import Fit
from fx_passes.kinds.merge import Merge
from fx_passes.kinds.narrow import Narrow
from fx_passes.limits import SpanLimits
from fx_passes.linearize import linearize
from fx_passes.merge import collapse_spans, fold_batch_norms, merge
from fx_passes.network import CapturedNetwork
from fx_passes.plan import Plan
from fx_passes.slots import Slot
from fx_passes.span import Piece, Span
from fx_passes.spans import enumerate_spans, find_span, random_plan
from fx_passes.structure import Level, Unit, structure_tree
from fx_passes.tuning_norms import insert_norms, solved_without_norm
from fx_passes.workload import Operator, Workload

__all__ = [
    "Body",
    "CapturedNetwork",
    "Drop",
    "Fit",
    "Level",
    "Merge",
    "Narrow",
    "Operator",
    "Piece",
    "Plan",
    "Slot",
    "Span",
    "SpanChoice",
    "SpanLimits",
    "Unit",
    "Workload",
    "capture",
    "collapse_spans",
    "enumerate_spans",
    "find_span",
    "fold_batch_norms",
    "free_merges",
    "insert_norms",
    "linearize",
    "merge",
    "random_plan",
    "solved_without_norm",
    "structure_tree",
]
