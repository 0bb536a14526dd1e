"""A result that no compression was run for."""

import torch
from torch import fx, nn

from depthcomp.budget import Budget
from depthcomp.preparation import Refusal
from depthcomp.results.effort import Effort
from depthcomp.results.findings import FrontierPoint, SpanRecord
from depthcomp.results.result import CompressionResult
from fx_passes import Drop, Fit, Merge, Plan
from latency_tables import Entry, Environment, LatencyTable, Method, Timing


def make_result(**changes):
    """A result as a small network on one CPU would give it; `changes` replaces fields."""
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval())
    fit = Fit("features_2_add", "features_4_add", (3, 3))
    merge = Merge("stem_act", "features_1_project_bn", (5, 5))
    drop = Drop("features_6_add", "features_7_add")
    here = Environment.here(
        backend="onnxruntime", backend_version="1.31.0", device="AMD EPYC (family 25, model 17)", threads=1
    )
    method = Method(
        estimator="minimum of round medians", rounds=5, samples_per_round=3, sample_ms=3.0, warmup_ms=20.0,
        seed=0, overhead_ms=0.004,
    )  # fmt: skip
    points = [(6.9, 4.1), (7.6, 2.2), (8.3, 0.9), (9.62, 0.31), (10.7, 0.12), (11.9, 0.03)]
    plans = [
        Plan((merge, fit, drop)),
        *[Plan((fit, drop))] * 2,
        Plan((merge, fit)),
        Plan((fit,)),
        Plan((merge,)),
    ]
    frontier = [FrontierPoint(ms, loss, plan) for (ms, loss), plan in zip(points, plans, strict=True)]
    fields = {
        "model": gm,
        "trainable": gm,
        "plan": Plan((merge, fit)),
        "frontier": (*frontier, FrontierPoint(12.7, 0.0, Plan())),
        "budget": Budget.parse("80%"),
        "budget_ms": 10.272,
        "original_timing": Timing((12.80, 12.79, 12.84, 12.88, 13.1), 15),
        "measured_timing": Timing((9.78, 9.76, 9.80, 9.84, 9.88), 15),
        "predicted_ms": 9.62,
        "loss": 0.287,
        "rank_correlation": 0.925,
        "effort": Effort(302, 234, 213, 95, 23, 9, 6, 347.4),
        "original_depth": 52,
        "depth": 43,
        "spans": (
            SpanRecord(fit, "features.3 to features.4", 6, 2.5, 0.9, 0.28),
            SpanRecord(merge, "features.1", 3, 1.75, 0.271, 0.03),
        ),
        "refusals": (
            Refusal("stem_act", "pool_1", "stem.1 to pools.0", "a max-pool is not affine", "pools.0"),
            Refusal("features_7_add", "pool_2", "pools.1", "a max-pool is not affine", "pools.1"),
            Refusal("twin_1", "twin_2", "twins.1", "it shares its weights with another part of the network"),
        ),
        "warnings": ("No data was given, so importance rests on synthetic images.",),
        "environment": here,
        "table": LatencyTable(here, method, {"k": Entry(ms=0.5, spread=0.01, n=15)}),
        "example_inputs": (torch.zeros(1, 3, 7, 11),),
        "seed": 41,
        "seconds": {"capture": 0.8, "measuring": 34.2},
    }
    return CompressionResult(**{**fields, **changes})
