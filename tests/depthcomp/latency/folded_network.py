"""Captured networks whose norms are folded."""

import torch

from fx_passes import CapturedNetwork, capture
from fx_passes.merge import fold_batch_norms


def network_of(model, *shape):
    """Return the network as it is priced: captured, its norms folded."""
    gm = capture(model.eval(), torch.zeros(*shape))
    fold_batch_norms(gm)
    gm.recompile()
    return CapturedNetwork(gm)
