"""Scores of choices by short training, after the papers' protocol.

Each choice is one entry: the captured graph is linearized by the choice alone, trained for some steps, and scored on
images that the training has not seen. Two of the scores need an entry for each layer, too: the graph with that layer
initialised anew. Each entry is seeded by its name, so order, interruptions and other processes do not change it.

Sources: Kim et al., ICML 2023 (arXiv 2301.12187), section 5 and appendix; LayerMerge, ICML 2024 (arXiv 2406.12837),
section 3; both in github.com/snu-mllab/LayerMerge.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from depthcomp.data.calibration import CalibrationSet
from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import require_finite
from depthcomp.errors import DepthCompError
from depthcomp.fingerprint import seed_of
from depthcomp.importance.journal import ScoreJournal
from depthcomp.importance.settings import require_counts
from depthcomp.latency.pricing import Candidate
from depthcomp.progress import Progress, silent
from fx_passes import CapturedNetwork, Plan, SpanChoice, linearize
from fx_passes.exclusion import freeze_excluded
from fx_passes.operators import NORMS, known_layer
from fx_passes.spatial_layers import BATCH_NORMS, CONVOLUTIONS, BatchNorm, Convolution

__all__ = ["TrainingSettings", "entries_of", "finetuned", "layers_of", "losses_of"]

Score = Literal["change", "normalized", "exponential"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Settings of the training of each choice, and of its score.

    Let d be the change of accuracy on held-out images after training. `score` turns the d of a choice into the value
    of the choice. It turns the d of a network with one layer initialised anew into the value of that layer. The loss
    of a choice is the sum of its span's layer values, less its own value. Where outputs are no class scores, d is the
    change of the negative divergence. Without labels, accuracy is agreement with the original network.

    Attributes:
        steps: training steps for each choice and each layer; the papers train one epoch, 5,000 steps.
        images: most images of `data` to read.
        batch_size: images in a step.
        lr: learning rate at the start; it falls to zero along a cosine.
        momentum: Nesterov momentum of SGD.
        weight_decay: weight decay of SGD.
        score: the value of a change d. "change": d; layers have value 0, and none is trained. "normalized" (Kim et
            al.): d less `alpha` times the mean d of the single layers. "exponential" (LayerMerge): exp(d).
        alpha: factor of the mean in "normalized".
    """

    steps: int = 20
    images: int = 1024
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-5
    score: Score = "change"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_counts(self, "steps", "images", "batch_size")
        for name in ("lr", "momentum", "weight_decay", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise DepthCompError(f"{name} (={value!r}) of an importance must be a finite number of at least 0")
        if self.score not in get_args(Score):
            raise DepthCompError(
                f"score (={self.score!r}) of an importance must be one of {', '.join(get_args(Score))}"
            )


def finetuned(
    captured: CapturedNetwork,
    candidates: Sequence[Candidate],
    calibration: CalibrationSet,
    config: TrainingSettings,
    journal: ScoreJournal,
    *,
    entries: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train and score the entries that the journal lacks, and add them to it.

    Args:
        captured: the captured network with its norms; it is not changed.
        candidates: the choices.
        calibration: the images; the first judging fold is held out, the others are trained on.
        config: settings of training and score.
        journal: the scores so far; new scores are added.
        entries: names from `entries_of` to score, where other processes score the rest; None for all.
        seed: seed of the order of images and of new layers.
        progress: called as (what, done, total).
    """
    report = progress or silent
    nets = entries_of(captured, candidates, config)
    wanted = list(nets) if entries is None else list(entries)
    protocol = _Protocol(captured.gm, calibration, config)
    for done, entry in enumerate(wanted):
        if entry not in journal:
            start = time.perf_counter()
            with _seeded(captured.gm, seed_of("importance", seed, entry)):
                change = protocol.change(nets[entry]())
            journal.add(entry, change, time.perf_counter() - start)
        report("training choices", done + 1, len(wanted))


def entries_of(
    captured: CapturedNetwork, candidates: Sequence[Candidate], config: TrainingSettings
) -> dict[str, Callable[[], fx.GraphModule]]:
    """Return the entries to train: functions that make their networks, by entry name."""
    layers = _all_layers(captured, candidates)
    entries: dict[str, Callable[[], fx.GraphModule]] = {
        str(candidate.choice): lambda choice=candidate.choice: linearize(captured, Plan((choice,)))  # type: ignore[misc]
        for candidate in candidates
    }
    if config.score != "change":
        entries |= {_layer_entry(name): lambda name=name: _reinitialised(captured.gm, name) for name in layers}  # type: ignore[misc]
    return entries


def losses_of(
    captured: CapturedNetwork,
    candidates: Sequence[Candidate],
    config: TrainingSettings,
    changes: Mapping[str, float],
) -> dict[SpanChoice, float]:
    """Return the loss of each choice from the changes of accuracy; NaN where a change is unknown or not finite.

    The loss is the sum of the values of the span's layers, less the value of the choice.
    """
    layers = _all_layers(captured, candidates)
    known = [value for name in layers if math.isfinite(value := changes.get(_layer_entry(name), math.nan))]
    mean = math.fsum(known) / len(known) if known else 0.0

    def worth(entry: str) -> float:
        change = changes.get(entry, math.nan)
        return math.exp(change) if config.score == "exponential" else change - config.alpha * mean

    if config.score == "change":
        return {c.choice: -changes.get(str(c.choice), math.nan) for c in candidates}
    return {
        candidate.choice: math.fsum(worth(_layer_entry(name)) for name in layers_of(captured, candidate))
        - worth(str(candidate.choice))
        for candidate in candidates
    }


_LAYER = "layer "


def _layer_entry(name: str) -> str:
    return _LAYER + name


def layers_of(captured: CapturedNetwork, candidate: Candidate) -> list[str]:
    """Return the node names of a span's convolutions, or of the norms behind them where those were folded."""
    nodes = captured.nodes
    return [name for name in candidate.span.nodes if name in nodes and _convolution(captured.gm, nodes[name])]


def _all_layers(captured: CapturedNetwork, candidates: Sequence[Candidate]) -> list[str]:
    return sorted({name for candidate in candidates for name in layers_of(captured, candidate)})


def _convolution(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the convolution of a node: its own where no norm follows alone, else the one before a norm, else None."""
    layer, source = known_layer(gm, node), node.args[0] if node.args else None
    if isinstance(layer, CONVOLUTIONS):
        follower = next(iter(node.users), None) if len(node.users) == 1 else None
        return None if follower is not None and isinstance(known_layer(gm, follower), NORMS) else node
    if isinstance(layer, NORMS) and isinstance(source, fx.Node) and isinstance(known_layer(gm, source), CONVOLUTIONS):
        return source
    return None


def _reinitialised(captured: fx.GraphModule, name: str) -> fx.GraphModule:
    """Return a copy with one convolution, and the norm behind it, initialised anew."""
    copied = copy.deepcopy(captured)
    node = next(node for node in copied.graph.nodes if node.name == name)
    for part in {node, _convolution(copied, node)}:
        layer = None if part is None else known_layer(copied, part)
        if isinstance(layer, Convolution | BatchNorm):
            layer.reset_parameters()
    return copied


@contextmanager
def _seeded(gm: fx.GraphModule, seed: int) -> Iterator[None]:
    """Seed random numbers inside the block, and restore the user's random state after it."""
    device = next(gm.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Protocol:
    """Trains networks with equal settings, and compares them with the original on held-out images."""

    def __init__(self, captured: fx.GraphModule, calibration: CalibrationSet, config: TrainingSettings) -> None:
        if calibration.loss.behind:
            raise DepthCompError(
                "this importance trains networks by their outputs, and the network returns classes or masks alone; use "
                'importance="curvature", or return scores beside them'
            )
        held_out = calibration.judges[0] if calibration.judges else None
        folds = calibration.folds
        chosen = [index for index, fold in enumerate(folds) if fold != held_out]
        judged = [index for index, fold in enumerate(folds) if held_out in (fold, None)]
        self._config, self._judging_loss = config, calibration.loss
        self._original = copy.deepcopy(captured).eval()
        self._images = Inputs.joined(calibration.batches[index] for index in chosen)
        self._labels = _joined(calibration.labels, chosen)
        self._judging = [calibration.batches[index] for index in judged]
        self._wanted = [self._teacher(batch) for batch in self._judging]
        require_finite(self._wanted)
        self._classes = _joined(calibration.labels, judged)
        largest = config.batch_size if max(map(len, calibration.batches)) > 1 else 1  # it may take one image only
        self._batch_size = min(largest, len(self._images))
        self._base = self._score(self._wanted)

    def change(self, network: fx.GraphModule) -> float:
        """Train a network and return the change of its score on held-out images from the original's."""
        self._train(network)
        network.eval()
        with torch.no_grad():
            return self._score([batch.through(network) for batch in self._judging]) - self._base

    def _teacher(self, images: Inputs) -> Any:
        with torch.no_grad():
            return images.through(self._original)

    def _score(self, outputs: Sequence[Any]) -> float:
        """Return the accuracy, or the negative divergence where outputs are no class scores."""
        if not all(map(self._judging_loss.are_scores, outputs)):
            pairs = zip(self._wanted, outputs, strict=True)
            losses = [float(self._judging_loss.divergence(wanted, found)) for wanted, found in pairs]
            sizes = list(map(len, self._judging))
            return -math.fsum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
        scores = torch.cat(list(outputs))
        if not scores.isfinite().all():
            return math.nan
        classes = torch.cat(self._wanted).argmax(1) if self._classes is None else self._classes.to(scores.device)
        return float((scores.argmax(1) == classes).double().mean())

    def _train(self, network: fx.GraphModule) -> None:
        config = self._config
        optimizer = torch.optim.SGD(
            network.parameters(), config.lr, config.momentum,
            weight_decay=config.weight_decay, nesterov=config.momentum > 0,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        network.train().requires_grad_(True)
        freeze_excluded(network)
        if self._batch_size == 1:  # one image gives poor statistics, one pixel none
            for norm in [module for module in network.modules() if isinstance(module, BATCH_NORMS)]:
                norm.eval()
        for chosen in self._batches(config.steps):
            loss = self._loss(network, chosen)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def _batches(self, steps: int) -> Iterator[Tensor]:
        """Yield the indices of each step's images: all of them in a random order, again and again."""
        drawn = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(drawn) < self._batch_size:
                drawn = torch.randperm(len(self._images))
            yield drawn[: self._batch_size]
            drawn = drawn[self._batch_size :]

    def _loss(self, network: fx.GraphModule, chosen: Tensor) -> Tensor:
        images = self._images[chosen.to(self._images.real.device)]
        outputs = images.through(network)
        if self._labels is not None:
            return F.cross_entropy(outputs, self._labels[chosen].to(outputs.device))
        return self._judging_loss.divergence(self._teacher(images), outputs)


def _joined(labels: Sequence[Tensor] | None, chosen: Sequence[int]) -> Tensor | None:
    return None if labels is None else torch.cat([labels[index] for index in chosen])
