"""Benchmark of the whole call by the depth of the network: seconds, memory, and how much was tried.

Networks have random weights and 224x224 inputs; images are crops of real photos. Each call runs in a process of its
own, one after another, with an empty folder. A network that no plan makes fast enough keeps its error as its row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import timm
import torch
from matplotlib import pyplot as plt
from photos import CALIBRATION, crops

import depthcomp
from depthcomp.errors import DepthCompError
from latency_tables import create_backend
from latency_tables.tables.environment import cpu_name

ROOT = Path(__file__).resolve().parent.parent
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
EFFICIENT = tuple(f"efficientnet_lite{number}" for number in range(5))
PIXELS = {"size": 224, "mean": 0.5, "std": 0.5}


class Parts:
    """Progress that adds up the seconds of each part of a call, by name."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self._then, self._now = time.perf_counter(), "capturing"

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Book the seconds since the last report to its stage."""
        now = time.perf_counter()
        self.seconds[self._now] += now - self._then
        self._then, self._now = now, stage.split(",")[0]  # passes over the images and folds are named behind a comma


def measured(name: str, images: int, budget: str, seed: int) -> dict[str, Any]:
    """Compress one network in this process, and return what that took."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    data = crops(CALIBRATION, -(-images // len(CALIBRATION)), smallest=0.15, seed=seed, jitter=True, **PIXELS)[:images]
    start, parts, found = time.perf_counter(), Parts(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = depthcomp.compress_depth(
                model, budget, data=data, backend=create_backend("onnxruntime", threads=1), seed=seed,
                output_dir=folder, progress=parts,
            )  # fmt: skip
        except DepthCompError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        else:
            assert result.effort is not None
            found = {
                "convolutions": result.original_depth,
                "speedup": result.speedup,
                "stages": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
                "effort": asdict(result.effort),
            }
    found["parts"] = {part: round(seconds, 1) for part, seconds in parts.seconds.most_common()}
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = round(time.perf_counter() - start, 1)
    return {
        "network": name, "images": images, "budget": budget, "seed": seed, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "onnxruntime": version("onnxruntime"), "machine": cpu_name(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "seconds": seconds, "peak_gib": round(peak_gib, 2), **found,
    }  # fmt: skip


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one network, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--images", str(options.images), "--budget", options.budget]
    finished = subprocess.run(
        [*command, "--seed", str(options.seed)], check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT / "scripts"
    )
    row: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return {**row, "load": round(os.getloadavg()[0], 1)}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the seconds and the memory of each family by the number of convolutions on the longest path."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same text for the same figures
    figure, panels = plt.subplots(1, 2, figsize=(10, 4))
    for family, label in (("resnet", "ResNet-18 to 152"), ("efficientnet", "EfficientNet-Lite0 to 4")):
        some = [row for row in rows if row["network"].startswith(family) and "error" not in row]
        some.sort(key=lambda row: row["convolutions"])
        depths = [row["convolutions"] for row in some]
        for axes, field in zip(panels, ("seconds", "peak_gib"), strict=True):
            axes.plot(depths, [row[field] for row in some], marker="o", label=label)
    for axes, what in zip(panels, ("seconds of the whole call", "GiB of memory at the peak"), strict=True):
        axes.set(xlabel="convolutions on the longest path", ylabel=what, xlim=(0, None), ylim=(0, None))
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def tell(row: dict[str, Any]) -> None:
    """Print a row."""
    detail = row.get("error") or f"{row['convolutions']} convolutions deep, {row['speedup']:.2f}x; {row['effort']}"
    print(f"{row['network']:>22}: {row['seconds']:6.0f} s, {row['peak_gib']:.1f} GiB; {detail}", flush=True)


def main() -> None:
    """Measure, print, write and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[*RESNETS, *EFFICIENT], help="names of timm")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--budget", default="75%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "scaling.json", help="rows here stay, if not named")
    parser.add_argument("--one", help="measure this network in this process and print its row")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.images, options.budget, options.seed)))
        return
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = {row["network"]: row for row in known}
    for name in options.only:
        rows[name] = in_a_process(name, options)
        tell(rows[name])
        options.out.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    plot(list(rows.values()), options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
