"""Benchmark of depth and width together, on EfficientNet-Lite0 with ImageNet weights, without labels or training.

Compresses to each budget by depth and width together, by depth alone and by width alone. Networks are judged by how
often they decide as the original does: on photos of the demo that calibration has not seen, and on photographs from
other sources. The folder of --photos is made by `photo_sources.py`. With --latency counted, latencies follow from the
shapes of the operators, so nothing is timed and processes may share the machine. Results are printed, and added to the
file of --out after each row, with a plot beside it; a row that is there is not made again. The folder of --cache holds
the latency table, which all rows share, and the importance of each method, calibration and seed, which budgets share.

    python scripts/bench_joint.py --photos PHOTOS --cache CACHE --out docs/joint.json
    python scripts/bench_joint.py --photos PHOTOS --cache CACHE --out docs/joint.json --calibrate 12x64 100x256
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from demo import PIXELS, agreement, outputs, pretrained
from photos import CALIBRATION, HELD_OUT, crops
from revisions.arithmetic_backend import ArithmeticBackend
from torch import Tensor

import depthcomp
from depthcomp.data.output_loss import divergence
from depthcomp.importance.default import DEFAULT_IMPORTANCE
from depthcomp_files import locked, write_atomically
from latency_tables import create_backend
from latency_tables.tables.environment import cpu_name

METHODS = {"joint": "depthcomp", "depth": "depth", "width": "width"}
SOURCES = ("held out", "others")
DEMO = "demo"
CROPS = 16  # of each of the demo's photos
CROPS_JUDGED = 4  # of each photograph from other sources
BACKENDS = {"counted": ArithmeticBackend, "onnxruntime": lambda: create_backend("onnxruntime", threads=1)}


@dataclass(frozen=True, slots=True)
class Row:
    """Settings of one row.

    Attributes:
        method: a key of METHODS.
        budget: the budget as users write it.
        calibration: "demo", or photos and crops like "12x64".
        seed: draws the crops and everything in the compression.
        latency: a key of BACKENDS.
    """

    method: str
    budget: str
    calibration: str
    seed: int
    latency: str

    def __str__(self) -> str:
        return f"{self.method}:{self.budget}:{self.calibration}:{self.seed}:{self.latency}"


def calibration(which: str, photos: Path, seed: int) -> Tensor:
    """Return calibration crops (n, 3, 224, 224), photo after photo."""
    if which == DEMO:
        return crops(CALIBRATION, CROPS, smallest=0.15, seed=seed, jitter=True, **PIXELS)
    count, images = map(int, which.split("x"))
    paths = sorted((photos / "calibration").iterdir())
    if count > len(paths):
        raise SystemExit(f"--calibrate {which} needs {count} photos, and {photos / 'calibration'} has {len(paths)}")
    chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    cut = crops([paths[k] for k in chosen], math.ceil(images / count), smallest=0.15, seed=seed, jitter=True, **PIXELS)
    return cut[torch.linspace(0, len(cut) - 1, images).long()]


def judged(photos: Path, seed: int) -> dict[str, Tensor]:
    """Return crops to judge on, by their source."""
    others = sorted((photos / "judged").iterdir())
    return {
        "held out": crops(HELD_OUT, CROPS, smallest=0.5, seed=seed + 1, **PIXELS),
        "others": crops(others, CROPS_JUDGED, smallest=0.5, seed=seed + 1, **PIXELS),
    }


def made(row: Row, photos: Path, cache: Path) -> dict[str, Any]:
    """Return the figures of a row."""
    model, start = pretrained(), time.perf_counter()
    stored = cache / f"importance-{row.method}-{row.calibration}-{row.seed}-{row.latency}.json"
    known = stored.exists()
    result = depthcomp.compress_depth(
        model, row.budget, data=calibration(row.calibration, photos, row.seed), backend=BACKENDS[row.latency](),
        table=cache / f"table-{row.latency}.json", importance=stored if known else DEFAULT_IMPORTANCE, seed=row.seed,
        method=METHODS[row.method],
    )  # fmt: skip
    result.importance.save(stored)
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - start),
        "stages": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "importance_known": known,
        "original_ms": result.original_ms,
        "measured_ms": result.measured_ms,
        "spread": result.measured_timing.spread,
        "rounds": len(result.measured_timing.rounds_ms),
        "speedup": result.original_ms / result.measured_ms,
        "plan": list(map(str, result.plan)),
        "loss": result.loss,
        "machine": cpu_name(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    for source, images in judged(photos, row.seed).items():
        original = outputs(model, images)
        for name, other in (
            (source, outputs(result.model, images)),
            (f"{source}, mirrored", outputs(model, images.flip(3))),
        ):
            found[name] = {"agreement": agreement(original, other), "kl": divergence(original, other), "n": len(images)}
    return found


def plot(rows: dict[str, Any], path: Path) -> None:
    """Draw agreement against speed-up by method, on both sources, for measured rows with the demo's calibration."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "joint"  # the same text for the same figures
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(SOURCES), figsize=(10, 4), sharey=True)
    for axes, source in zip(panels, SOURCES, strict=True):
        for method in METHODS:
            some = [row for key, row in rows.items() if _is_drawn(key, method)]
            agreements = [row[source]["agreement"] for row in some]
            axes.plot([row["speedup"] for row in some], agreements, "o", label=method)
        mirrored = [row[f"{source}, mirrored"]["agreement"] for row in rows.values()]
        axes.axhline(sum(mirrored) / len(mirrored), linestyle="--", color="grey", label="original, mirrored")
        axes.set(xlabel="measured speed-up", title=source, ylim=(0, 1))
    panels[0].set_ylabel("agreement with the original")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _is_drawn(key: str, method: str) -> bool:
    """Say whether the plot shows a row among those of a method."""
    own, _, which, _, latency = key.split(":")
    return (own, which, latency) == (method, DEMO, "onnxruntime")


def read(path: Path) -> dict[str, Any]:
    """Return the rows of a file of results, none where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--budgets", nargs="+", default=["80%", "1.4x", "1.6x"])
    parser.add_argument("--calibrate", nargs="+", default=[DEMO], help="demo, or PHOTOSxCROPS such as 12x64")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--latency", choices=BACKENDS, default="onnxruntime")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the table and importance")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = [
        Row(method, budget, which, seed, options.latency)
        for seed in options.seeds
        for which in options.calibrate
        for budget in options.budgets
        for method in options.methods
    ]
    for row in rows:
        if str(row) in read(options.out):
            continue
        found = made(row, options.photos, options.cache)
        with locked(options.out, "results"):
            rows_so_far = read(options.out) | {str(row): found}
            write_atomically(options.out, json.dumps(rows_so_far, indent=1).encode() + b"\n")
            plot(rows_so_far, options.out.with_suffix(".svg"))
        scores = ", ".join(f"{name} {found[name]['agreement']:.1%} KL {found[name]['kl']:.3f}" for name in SOURCES)
        print(f"{row}: {found['speedup']:.2f}x, {scores}, {found['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
