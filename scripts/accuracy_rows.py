"""One row of the accuracy benchmark: a network, a method, a budget, a seed; compressed, fine-tuned, judged.

The seed draws the pixels that fits sample, random choices, and the training's order. Base networks and calibration
images are the same for all seeds, so the spread over seeds says nothing about other networks or images.
"""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fashion_data import Batches, Part, Parts
from fashion_nets import accuracy
from torch import Tensor, fx, nn

from depthcomp import Budget, compress_depth
from depthcomp.errors import BudgetInfeasibleError
from depthcomp.export.onnx_model import to_onnx
from depthcomp.importance.default import DEFAULT_IMPORTANCE
from depthcomp.methods.registry import METHODS
from depthcomp.results.result import CompressionResult
from depthcomp.training.finetune import FinetuneConfig, finetune
from depthcomp.training.plan import finetune_plan
from depthcomp_files import write_atomically
from fx_passes import capture, fold_batch_norms, merge
from latency_tables import AnyBackend

__all__ = ["CHANNELS", "CONTROL", "EXAMPLE", "Bench", "Key", "onnx_of", "run_row"]

CHANNELS = "channels"  # the method that is not depthcomp's: channel pruning
CONTROL = "control"  # the original itself, fine-tuned like what the methods return
EXAMPLE = torch.zeros(1, 1, 28, 28)
PAPERS = ("kim23", "layermerge")  # their importance trains each choice a little
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What tells a row from others."""

    net: str
    method: str
    budget: str
    seed: int

    def __str__(self) -> str:
        return f"{self.net}:{self.method}:{self.budget}:{self.seed}"

    @property
    def file_name(self) -> str:
        """The row's key as the name of a file."""
        return re.sub(r"[^\w.]", "-", str(self))


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows share.

    Attributes:
        parts: the data; `test` is only looked at for the figures of a finished row.
        backend: where latency is measured.
        cache: the folder of everything that need not be made twice.
        calibration: how many training images fits and importance see.
        scored: how many training images the papers' importance trains and scores on.
        config: how every row is fine-tuned, but for its seed.
    """

    parts: Parts
    backend: AnyBackend
    cache: Path
    calibration: int
    scored: int
    config: FinetuneConfig

    def images(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first training images with their labels, in batches."""
        part = self.parts.train.first(count)
        return list(zip(part.images.split(64), part.labels.split(64), strict=True))

    def finetuning(self, key: Key) -> FinetuneConfig:
        """Return how a row is fine-tuned."""
        return FinetuneConfig(**{**asdict(self.config), "seed": key.seed})


def onnx_of(bench: Bench, key: Key) -> Path:
    """Return where the row's network lies, for the latencies that are measured side by side."""
    return bench.cache / "rows" / f"{key.file_name}.onnx"


def run_row(bench: Bench, key: Key, model: nn.Module) -> Row:
    """Return the figures of a row; its network is left in the cache.

    A row that was interrupted goes on from what its last run left there.
    """
    folder = bench.cache / "unfinished" / key.file_name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        found, network = {CHANNELS: _channels, CONTROL: _control}.get(key.method, _depth)(bench, key, model, folder)
    except BudgetInfeasibleError as error:
        found, network = {"infeasible": str(error), "best_ms": round(error.best_ms, 4)}, None
    if network is not None:
        path = onnx_of(bench, key)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, to_onnx(network, (EXAMPLE,)))
        found |= {"validation": _share(network, bench.parts.validation), "test": _share(network, bench.parts.test)}
    shutil.rmtree(folder)
    return {**asdict(key), **found, "row_s": round(time.perf_counter() - start)}


def _depth(bench: Bench, key: Key, model: nn.Module, folder: Path) -> tuple[Row, fx.GraphModule]:
    """Compress the depth by a method of depthcomp and fine-tune."""
    result = _compressed(bench, key, model)
    before = _before(bench, result)
    plan = hashlib.sha256(result.plan.to_json().encode()).hexdigest()[:12]  # measured anew, another one may be found
    batches = Batches(bench.parts.train, bench.config.batch_size, key.seed)
    tuned = finetune_plan(
        result.trainable, result.plan, model, batches, _judging(bench), bench.finetuning(key),
        calibration=[images for images, _ in bench.images(bench.calibration)], folder=folder / plan,
    )  # fmt: skip
    return {
        **before,
        "loss": round(result.loss, 4),
        "depth": result.depth,
        "plan": [str(choice) for choice in result.plan],
        "importance_s": round(result.importance.seconds, 1),
        "compress_s": round(sum(result.seconds.values())),
        "finetune_s": round(tuned.record.seconds),
        "best_epoch": tuned.record.best,
    }, tuned.model


def _compressed(bench: Bench, key: Key, model: nn.Module) -> CompressionResult:
    """Compress to the budget; the importance of choices is found once for all budgets of a method and seed."""
    folder = bench.cache / "importance" / f"{key.net}-{key.method}-{key.seed}"
    method, known = METHODS[key.method], folder / "importance.json"
    count = bench.scored if method.importance in PAPERS else bench.calibration
    importance = known if known.exists() else method.importance or DEFAULT_IMPORTANCE
    return compress_depth(
        model, key.budget, example_inputs=EXAMPLE, data=bench.images(count), backend=bench.backend,
        table=bench.cache / "table.json", method=method.name, importance=importance,
        output_dir=folder, seed=key.seed,
    )  # fmt: skip


def _before(bench: Bench, result: CompressionResult) -> Row:
    """Return the accuracy before fine-tuning, as it is and with the statistics of norms that are left taken anew."""
    restored = copy.deepcopy(result.trainable)
    parts = {"validation": bench.parts.validation, "test": bench.parts.test}
    found = {f"untrained_{name}": _share(result.model, part) for name, part in parts.items()}
    if _take_statistics(restored, [images for images, _ in bench.images(bench.calibration)]):
        merged = merge(restored, result.plan)
        found |= {f"untrained_norms_{name}": _share(merged, part) for name, part in parts.items()}
    return found


def _take_statistics(network: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Take the statistics of all batch norms anew, in place; return whether there are any."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for images in batches:
            network(images)
    network.eval()
    return bool(norms)


def _channels(bench: Bench, key: Key, model: nn.Module, folder: Path) -> tuple[Row, fx.GraphModule]:
    """Prune channels to the same measured latency and fine-tune."""
    from channel_pruning import prune_channels  # needs a library that the other methods do without

    start = time.perf_counter()
    pruned = prune_channels(
        model, EXAMPLE, Budget.parse(key.budget), bench.backend, key.seed, bench.images(bench.scored),
        lambda network: _share(_restored(bench, network), bench.parts.validation),
    )  # fmt: skip
    seconds = round(time.perf_counter() - start)
    parts = {"validation": bench.parts.validation, "test": bench.parts.test}
    found: Row = {f"untrained_{name}": _share(pruned.network, part) for name, part in parts.items()}
    restored = _restored(bench, pruned.network)
    found |= {f"untrained_norms_{name}": _share(restored, part) for name, part in parts.items()}
    found |= {"variant": str(pruned.variant), "ratio": pruned.ratio, "compress_s": seconds, "importance_s": None}
    tuned, network = _tuned(bench, key, pruned.network, model, folder)
    return found | tuned, network


def _control(bench: Bench, key: Key, model: nn.Module, folder: Path) -> tuple[Row, fx.GraphModule]:
    """Fine-tune the original, with itself as teacher: what the further epochs alone are worth."""
    found = {
        "untrained_validation": _share(model, bench.parts.validation),
        "untrained_test": _share(model, bench.parts.test),
    }
    tuned, network = _tuned(bench, key, model, model, folder)
    return {**found, "compress_s": 0, "importance_s": None, **tuned}, network


def _tuned(bench: Bench, key: Key, network: nn.Module, teacher: nn.Module, folder: Path) -> tuple[Row, fx.GraphModule]:
    """Fine-tune a network that no plan was made for; return it as runtimes run it."""
    batches = Batches(bench.parts.train, bench.config.batch_size, key.seed)
    tuned = finetune(network, teacher, batches, _judging(bench), bench.finetuning(key), folder=folder / "finetune")
    graph = capture(tuned.network, EXAMPLE)
    fold_batch_norms(graph)
    return {"finetune_s": round(tuned.record.seconds), "best_epoch": tuned.record.best}, graph


def _restored(bench: Bench, network: nn.Module) -> nn.Module:
    """Return a copy with the statistics of its norms taken anew."""
    restored = copy.deepcopy(network)
    _take_statistics(restored, [images for images, _ in bench.images(bench.calibration)])
    return restored


def _judging(bench: Bench) -> list[tuple[Tensor, Tensor]]:
    part = bench.parts.validation
    return list(zip(part.images.split(500), part.labels.split(500), strict=True))


def _share(network: nn.Module, part: Part) -> float:
    return round(accuracy(network, part), 4)
