"""Problems of the solver for whole networks: choices of every kind, at counted latencies and made-up losses."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from revisions.arithmetic_backend import ArithmeticBackend

from depthcomp.latency.pricing import Pricing
from depthcomp.methods.candidates import LEAST_SAVING
from depthcomp.preparation import DEFAULT_LIMITS
from dp_solver import Chain
from fx_passes import CapturedNetwork, capture, enumerate_spans, fold_batch_norms
from latency_tables import measure

__all__ = ["NETWORKS", "network_problem"]

NETWORKS = ("mobilenet_v2", "resnet50")


def network_problem(name: str, seed: int) -> tuple[Chain, int]:
    """Return the problem of a network of torchvision at 224x224, and the number of its choices.

    A choice loses more, the more it saves; a random factor of its exit, and one of its own, set it apart from others.
    """
    gm = capture(torchvision.models.get_model(name).eval(), torch.zeros(1, 3, 224, 224))
    fold_batch_norms(gm)
    network = CapturedNetwork(gm)
    pricing = Pricing(network)
    candidates = pricing.candidates(enumerate_spans(network, DEFAULT_LIMITS))
    table = measure(pricing.signatures(candidates), ArithmeticBackend())
    total_ms, rng = pricing.kept_ms(pricing.kept, table.ms), np.random.default_rng(seed)
    shares = {candidate.choice: pricing.saving_ms(candidate, table.ms) / total_ms for candidate in candidates}
    factors = {choice.exit: rng.lognormal() for choice in shares}
    losses = {
        choice: float(share**1.5 * factors[choice.exit] * rng.lognormal(sigma=0.3))
        for choice, share in shares.items()
        if share > LEAST_SAVING
    }
    return pricing.problem(network.tree, candidates, losses, table.ms), len(losses)
