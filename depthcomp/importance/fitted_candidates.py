"""Fits of candidates and of the consumers of their changes, kept in memory for their scores up to a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from depthcomp.data.calibration import CalibrationSet
from depthcomp.fitting.candidates import Weights, fit_candidates
from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.fitting.consumers import refit_consumers, restores_its_exit
from depthcomp.fitting.kept_slots import consumers_of
from depthcomp.fitting.memory import FitMemory
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress
from fx_passes import CapturedNetwork, SpanChoice
from fx_passes.affine import AffineConv

__all__ = ["FittedCandidates"]

_MIB = 2**20
CONSUMER_BATCHES = 12  # consumers of a change are refitted on this many batches for a score


class FittedCandidates:
    """Weights of candidates' bodies, and refitted consumers behind them.

    Args:
        network: the captured network, in evaluation mode; it is not changed.
        calibration: the images to fit on.
        seed: seed of the sampled pixels.
        report: called as (what, done, total).
        memory: the memory that the sums of fits may use; the weights that are kept may use as much again.
        refit_kept: whether kept layers that read a change are refitted; False where the images are random.
        channels: decides which inner channels stay; None to look at the images for that.

    Attributes:
        refits: whether consumers are refitted.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        calibration: CalibrationSet,
        *,
        seed: int,
        report: Progress,
        memory: FitMemory,
        refit_kept: bool,
        channels: ChannelOrders | None = None,
    ) -> None:
        self._network, self._calibration = network, calibration
        self._seed, self._report, self._memory = seed, report, memory
        self._channels = channels or ChannelOrders(network, calibration, seed=seed, memory=memory, progress=report)
        self._limit = memory.mib * _MIB
        self.refits = refit_kept and bool(calibration.judges)  # a fold must choose the strength of a refit
        self._weights: dict[SpanChoice, Mapping[int, Weights]] = {}
        self._consumers: dict[tuple[SpanChoice, int], Mapping[str, AffineConv]] = {}
        self._consumed: dict[str, int] = {}  # by exit

    def weights(self, choice: SpanChoice, fold: int) -> Weights:
        """Return weights of a fitted choice's body that have not seen a fold."""
        return self._weights[choice][fold]

    def consumers(self, choice: SpanChoice, fold: int) -> Mapping[str, AffineConv]:
        """Return the refitted consumers of a choice without a fold; empty before `fit`."""
        return self._consumers.get((choice, fold), {})

    @property
    def exceeds_memory(self) -> bool:
        """Whether the weights take more memory than the sums of fits may."""
        return sum(map(self._bytes, self._weights)) > self._limit

    def keep(self, choices: Iterable[SpanChoice]) -> None:
        """Keep the weights of choices that fit into memory, in this order; free all others.

        `fit` solves freed ones again, to the same bits, where they are wanted.
        """
        kept, used = set[SpanChoice](), 0
        for choice in choices:
            used += self._bytes(choice) if choice not in kept else 0
            if used > self._limit:
                break
            kept.add(choice)
        self.free(self._weights.keys() - kept)

    def free(self, choices: Set[SpanChoice]) -> None:
        """Free the weights of choices."""
        self._weights = {choice: weights for choice, weights in self._weights.items() if choice not in choices}
        self._consumers = {key: several for key, several in self._consumers.items() if key[0] not in choices}

    def _bytes(self, choice: SpanChoice) -> int:
        """Return the bytes of a choice's weights and consumers over all folds; 0 where it is not fitted."""
        folds = self._weights.get(choice, {})
        several = [*folds.values(), *(self.consumers(choice, fold) for fold in folds)]
        return sum(operator.weight.nbytes for operators in several for operator in operators.values())

    def parts(
        self, candidates: Sequence[Candidate], folds: int, bare: Set[SpanChoice] = frozenset()
    ) -> Iterator[list[Candidate]]:
        """Yield candidates in their order, in parts that `fit` may take at once within the memory, at least one each.

        Args:
            candidates: the candidates.
            folds: number of folds without which consumers are refitted.
            bare: choices without refits.
        """
        part, used = list[Candidate](), 0
        for candidate in candidates:
            size = self._foretold_bytes(candidate, 0 if candidate.choice in bare else folds)
            if part and used + size > self._limit:
                yield part
                part, used = [], 0
            part, used = [*part, candidate], used + size
        if part:
            yield part

    def _foretold_bytes(self, candidate: Candidate, folds: int) -> int:
        """Return about how many bytes a candidate's weights and consumers will have."""
        solved, single = {slot.node for slot in candidate.slots}, self._calibration.batches[0].real.element_size()
        sizes = [  # of weights that follow from the network's, in float64, and of solved ones
            operator.weight.numel() * (single if name in solved else 8)
            for name, operator in candidate.body.operators.items()
        ]
        refitted = self.refits and not restores_its_exit(candidate)
        consumers = folds * single * self._consuming(candidate.choice.exit) if refitted and folds else 0
        return self._calibration.count * sum(sizes) + consumers

    def _consuming(self, exit_: str) -> int:
        """Return the number of weights of the kept layers that read the tensor at an exit."""
        if exit_ not in self._consumed:
            slots = consumers_of(self._network, exit_)
            self._consumed[exit_] = sum(slot.operator.weight.numel() for slot in slots)
        return self._consumed[exit_]

    def fit(self, candidates: Sequence[Candidate], folds: Sequence[int], bare: Set[SpanChoice] = frozenset()) -> None:
        """Solve candidates, and refit the consumers of their changes without each fold, where that is not done yet.

        `memory` has room for at least one pixel of each fit's kernel. Choices in `bare` need no refits, and no choice
        does where `folds` is empty.
        """
        unsolved = [c for c in candidates if c.choice not in self._weights]
        if unsolved:
            self._weights |= fit_candidates(
                self._network, unsolved, self._calibration,
                seed=self._seed, progress=self._report, memory=self._memory, channels=self._channels,
            )  # fmt: skip
        some = [candidate for candidate in candidates if candidate.choice not in bare] if self.refits else []
        missing = [c for c in some if any((c.choice, fold) not in self._consumers for fold in folds)]
        if missing:
            self._consumers |= refit_consumers(
                self._network, missing, self._weights, self._calibration.thinned(CONSUMER_BATCHES), folds,
                seed=self._seed, memory=self._memory, progress=self._report,
            )  # fmt: skip
