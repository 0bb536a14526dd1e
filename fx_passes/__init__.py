"""Graph in, graph out: capture a network, understand its structure, rewrite it by a plan.

`capture` makes a canonical graph of any traceable network, `structure_tree` and `enumerate_spans` say what
can be compressed and why the rest cannot, `free_merges` finds what collapses at no price, `linearize` carries a
plan out in trainable form and `merge` collapses the result into a shallower network that computes the same
function.
"""

from fx_passes.capture import capture
from fx_passes.choices import SpanLimits
from fx_passes.free_merges import free_merges
from fx_passes.linearize import linearize
from fx_passes.merge import collapse_spans, fold_batch_norms, merge
from fx_passes.placed import PlacedConvolution, placed_convolutions
from fx_passes.plan import Plan, SpanChoice
from fx_passes.spans import Span, enumerate_spans, find_span, random_plan
from fx_passes.structure import Level, Unit, structure_tree
from fx_passes.tuning_norms import fits_without_norm, insert_norms

__all__ = [
    "Level",
    "PlacedConvolution",
    "Plan",
    "Span",
    "SpanChoice",
    "SpanLimits",
    "Unit",
    "capture",
    "collapse_spans",
    "enumerate_spans",
    "find_span",
    "fits_without_norm",
    "fold_batch_norms",
    "free_merges",
    "insert_norms",
    "linearize",
    "merge",
    "placed_convolutions",
    "random_plan",
    "structure_tree",
]
