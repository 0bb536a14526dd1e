"""Latencies of whole networks, measured side by side or predicted from sums over a latency table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor, fx

from depthcomp.export.onnx_model import to_onnx
from depthcomp.progress import Progress, silent
from fx_passes import Plan, merge
from latency_tables import AnyBackend, Calibration, Timing, fit_affine
from latency_tables.backends.protocol import runner_of
from latency_tables.measuring.timing import time_until_steady

__all__ = ["LatencyPredictor", "Network", "NetworkTimer"]


class Network:
    """A captured network in the forms that backends take, each made on first use; `gm` is not changed.

    Both forms have folded norms and no dropout, compressed or not: runtimes do this to ONNX models, PyTorch does not.

    Args:
        gm: a captured graph, or a graph made from one.
        example_inputs: inputs that give the shapes.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
        self._gm = gm
        self._example_inputs = example_inputs

    def onnx(self) -> bytes:
        """Return the network as a serialised ONNX model.

        Raises:
            ArtifactError: it cannot be exported.
        """
        return self._onnx

    @cached_property
    def _onnx(self) -> bytes:
        return to_onnx(self._gm, self._example_inputs)

    def module(self) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
        """Return a copy of the network in evaluation mode, and its example inputs."""
        return merge(self._gm, Plan()), self._example_inputs


class NetworkTimer:
    """Times networks against the original, in interleaved rounds.

    Args:
        original: the captured network.
        example_inputs: the inputs to run on.
        backend: the backend that measures.
        seed: seed of the order of rounds.
        progress: called as (what, done, total).
    """

    def __init__(
        self, original: fx.GraphModule, example_inputs: tuple[Tensor, ...], backend: AnyBackend,
        *, seed: int = 0, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self._example_inputs = example_inputs
        self._backend = backend
        self._seed = seed
        self._report = progress or silent
        self._original = Network(original, example_inputs)

    @cached_property
    def original(self) -> Timing:
        """The original's timing, measured alone on first use."""
        return self._time({"original": self._original}, rounds=5)["original"]

    def compare(self, network: fx.GraphModule, *, rounds: int = 7) -> tuple[Timing, Timing]:
        """Return the timings of the original and of `network`, measured side by side in one run.

        While the spread of either is above 2.5 %, more rounds are added, at most two more sets.
        """
        networks = {"original": self._original, "compressed": Network(network, self._example_inputs)}
        timings = self._time(networks, rounds)
        return timings["original"], timings["compressed"]

    def _time(self, networks: dict[str, Network], rounds: int) -> dict[str, Timing]:
        """Time all networks in turns, and again while one of them is not steady."""
        runners = {name: runner_of(network, self._backend) for name, network in networks.items()}
        try:
            return time_until_steady(
                runners, rounds=rounds, seed=self._seed, sample_ms=50.0, warmup_ms=100.0,
                progress=lambda done, total, what: self._report("measuring whole networks", done, total),
            )  # fmt: skip
        finally:
            for runner in runners.values():
                runner.close()


class LatencyPredictor:
    """Predictor of network latencies from sums over a latency table, learnt from measured networks.

    Predictions are relative to the original: machines drift, but two networks measured side by side drift alike.

    Args:
        timer: measures whole networks.
        original_sum_ms: sum of the latencies of the original's operators.
        measured: returns the part of a network to measure.
    """

    def __init__(
        self,
        timer: NetworkTimer,
        original_sum_ms: float,
        measured: Callable[[fx.GraphModule], fx.GraphModule] = lambda network: network,
    ) -> None:
        self._timer, self._measured = timer, measured
        self.original = timer.original
        self.original_sum_ms = original_sum_ms
        self._sum_shares = [1.0]
        self._measured_shares = [1.0]

    def learn(self, network: fx.GraphModule, sum_ms: float) -> tuple[Timing, Timing]:
        """Measure a network whose operators sum to `sum_ms`; return the original's timing and its own."""
        original, found = self._timer.compare(self._measured(network))
        self._sum_shares.append(sum_ms / self.original_sum_ms)
        self._measured_shares.append(found.median_ms / original.median_ms)
        return original, found

    def predict(self, sum_ms: float) -> float:
        """Return the predicted latency in ms of a network whose operators sum to `sum_ms`."""
        return self.calibration.predict(sum_ms)

    def invert(self, target_ms: float) -> float:
        """Return the largest sum in ms whose predicted latency is at most `target_ms`."""
        return self.calibration.invert(target_ms)

    @property
    def _unpriced_share(self) -> float:
        """Share of the original's latency that its operators with a price leave open, as attention has none."""
        return max(1 - self.original_sum_ms / self.original.median_ms, 0.0)

    @property
    def calibration(self) -> Calibration:
        """The line through the networks measured so far, from sums in ms to ms at the speed of `original`.

        It is fitted in shares of the original, then scaled. So with too few networks for a slope, saving a share of
        the sum predicts saving that share of the whole.
        """
        whole_ms = self.original.median_ms
        line = fit_affine(self._sum_shares, self._measured_shares, unpriced_ms=self._unpriced_share)
        return Calibration(
            intercept_ms=line.intercept_ms * whole_ms,
            slope=line.slope * whole_ms / self.original_sum_ms,
            residual_ms=line.residual_ms * whole_ms,
            n=line.n,
        )
