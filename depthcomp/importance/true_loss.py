"""True losses of candidates: a forward of the changed network on each judging batch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from depthcomp.data.calibration import CalibrationSet
from depthcomp.data.output_loss import DEFAULT_LOSS, OutputLoss, require_finite
from depthcomp.fitting.candidates import Weights, refitted_layers, replacement
from depthcomp.fitting.execution import Tail
from depthcomp.importance.candidate_scorer import JudgingBatch
from depthcomp.latency.pricing import Candidate
from fx_passes import CapturedNetwork
from fx_passes.affine import AffineConv

__all__ = ["TrueLoss", "judging_batches"]

MOST_JUDGING = 18  # candidates are scored on at most this many batches; whole plans are judged on all


class TrueLoss:
    """Judge that runs the changed network on a judging batch, and measures the rise of its loss.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        batch: the judging batch.
        judging: the loss of outputs.

    Raises:
        DataError: the network's own output is not finite.
    """

    def __init__(self, network: CapturedNetwork, batch: JudgingBatch, judging: OutputLoss = DEFAULT_LOSS) -> None:
        self._tail, self._batch, self._judging = Tail(network.gm, batch.images), batch, judging
        require_finite(self._tail.output)

    def loss(self, candidate: Candidate, weights: Weights, consumers: Mapping[str, AffineConv]) -> float:
        """Return the loss of the network with a candidate's body and refitted consumers of its change."""
        refitted = refitted_layers(self._tail.gm, consumers)
        changed = self._tail.rerun(*replacement(candidate, weights, self._tail), refitted)
        return self._judging.rise(self._tail.output, changed, self._batch.images, self._batch.labels)


def judging_batches(calibration: CalibrationSet) -> list[JudgingBatch]:
    """Return the batches that judge candidates, the folds in turns."""
    turns = zip(calibration.judging(), calibration.judging_labels(), strict=True)
    return [
        JudgingBatch(f"batch {number}", fold, images, labels)
        for number, ((fold, images), labels) in enumerate(itertools.islice(turns, MOST_JUDGING))
    ]
