"""Benchmark of accuracy at a given speed: depth compression by each method, and channel pruning, on Fashion-MNIST.

Networks are trained from scratch and kept in the cache. For each network, method and budget, and for three seeds at
two budgets: compress to the budget, fine-tune for equally many epochs, judge on the official test part, which no
choice uses. Budgets are met by measuring whole networks with ONNX Runtime on one CPU thread, one image at a time. In
the end all networks are timed once more, side by side in turns; these latencies are reported, with machine and day.

A full run takes hours. The file holds each row as soon as it is finished, and a killed run goes on from there:

    python scripts/bench_accuracy.py --data DATA --cache CACHE
    python scripts/bench_accuracy.py --data DATA --cache CACHE --only "mobilenetv2:*:1.5x:0"
    python scripts/bench_accuracy.py --data DATA --cache CACHE --only mobilenetv2:depthcomp:1.5x:0

The last command makes one row anew. Processes may share the work, each with other rows. The cache keeps trained
networks and importance, which are used unchecked: give another cache after a change of the code that makes them. The
row `control` is the original, fine-tuned like all others. Channel pruning needs the packages of requirements-bench.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accuracy_report import Results, changed, plot, read, summary, table
from accuracy_rows import CHANNELS, CONTROL, EXAMPLE, Bench, Key, onnx_of, run_row
from fashion_data import fashion_mnist
from fashion_nets import Recipe, accuracy, trained
from torch import nn

from depthcomp.export.onnx_model import to_onnx
from depthcomp.methods.registry import METHODS
from depthcomp.training.finetune import FinetuneConfig
from fx_passes import capture, fold_batch_norms
from latency_tables import Timing, create_backend
from latency_tables.measuring.timing import time_until_steady
from latency_tables.tables.environment import cpu_name

ROOT = Path(__file__).parents[1]
BUDGETS, SEEDED, SEEDS = ("1.25x", "1.5x", "2x", "3x"), ("1.5x", "2x"), (0, 1, 2)
WHOLE = "1x"  # where nothing is asked for
RECIPES = {"mobilenetv2": Recipe(), "resnet": Recipe(epochs=12), "tiny": Recipe(epochs=1)}
FULL, QUICK = ("mobilenetv2", "resnet"), ("tiny",)
CALIBRATION, SCORED = 2048, 1024  # images
FINETUNING = FinetuneConfig(epochs=2, channels_last=True)
QUICK_IMAGES = 256
ORIGINAL = "original"
LIBRARIES = ("torch", "timm", "onnxruntime", "torch-pruning")
ROUNDS, SAMPLE_MS, WARMUP_MS = 21, 50.0, 100.0


def keys(nets: Sequence[str], budgets: Sequence[str]) -> list[Key]:
    """Return all rows, those of the first seed and of the budgets with several seeds first."""
    found = [
        Key(net, method, budget, seed)
        for net in nets
        for method in (*METHODS, CHANNELS)
        for budget in budgets
        for seed in (SEEDS if budget in SEEDED else SEEDS[:1])
    ]
    found += [Key(net, CONTROL, WHOLE, seed) for net in nets for seed in SEEDS]
    return sorted(found, key=lambda key: (key.seed, key.budget not in SEEDED, nets.index(key.net)))


def wanted(all_keys: Iterable[Key], patterns: Sequence[str], done: Iterable[str]) -> list[Key]:
    """Return the rows that patterns select and that are not there yet; a row named in full is made anew."""
    there = set(done) - set(patterns)
    chosen = [key for key in all_keys if not patterns or any(fnmatchcase(str(key), p) for p in patterns)]
    return [key for key in chosen if str(key) not in there]


def measure(bench: Bench, net: str, model: nn.Module, results: Results, seed: int) -> dict[str, dict[str, Any]]:
    """Time a network and all its rows side by side, and return the figures of each."""
    rows = {key: row for key, row in results["rows"].items() if row["net"] == net}
    paths = {key: onnx_of(bench, _key(row)) for key, row in rows.items() if "infeasible" not in row}
    missing = [key for key, path in paths.items() if not path.exists()]
    if missing:
        print(f"not timed, as the cache lacks their networks: {', '.join(missing)}", flush=True)
    original = capture(model, EXAMPLE)
    fold_batch_norms(original)
    models = {ORIGINAL: to_onnx(original, (EXAMPLE,))}
    models |= {key: path.read_bytes() for key, path in paths.items() if path.exists()}
    with ExitStack() as stack:
        runners = {}
        for name, content in models.items():
            runners[name] = bench.backend.build(content)
            stack.callback(runners[name].close)
        timings = time_until_steady(runners, rounds=ROUNDS, seed=seed, sample_ms=SAMPLE_MS, warmup_ms=WARMUP_MS)
    return {name: _latency(timing, timings[ORIGINAL]) for name, timing in timings.items()}


def _latency(timing: Timing, original: Timing) -> dict[str, Any]:
    return {
        "ms": round(timing.median_ms, 5),
        "spread": round(timing.spread, 4),
        "n": timing.n,
        "speedup": round(original.median_ms / timing.median_ms, 4),
    }


def _key(row: dict[str, Any]) -> Key:
    return Key(row["net"], row["method"], row["budget"], row["seed"])


def conditions(bench: Bench) -> dict[str, Any]:
    """Return what rows depend on besides their keys."""
    config = {name: value for name, value in asdict(bench.config).items() if not callable(value)}
    return {
        "machine": _machine(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "data": "Fashion-MNIST",
        "images": {name: len(getattr(bench.parts, name)) for name in ("train", "validation", "test")},
        "calibration_images": bench.calibration,
        "importance_images": bench.scored,
        "finetune": config,
    }


def _machine() -> str:
    return f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _name_of(found: dict[str, Any]) -> str:
    """Return a short name of conditions, which rows made under them have."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]


def _commit() -> str:
    """Return the commit that is checked out, marked where files differ from it; "unknown" outside a checkout."""
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def judged(bench: Bench, name: str, model: nn.Module) -> dict[str, Any]:
    """Return the accuracies of a trained network, and how it was trained."""
    shares = {part: round(accuracy(model, getattr(bench.parts, part)), 4) for part in ("validation", "test")}
    return {**shares, "recipe": asdict(RECIPES[name])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with Fashion-MNIST, or to download it to")
    parser.add_argument("--cache", type=Path, required=True, help="for trained networks, tables and unfinished rows")
    parser.add_argument("--only", action="append", default=[], help="NET:METHOD:BUDGET:SEED, with * for any")
    parser.add_argument("--measure", action="store_true", help="make no rows; time those that are there")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few images: whether all runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.json", help="results, a plot beside")
    options = parser.parse_args(arguments)
    bench, nets, budgets = _quick(options) if options.quick else _full(options)
    run(bench, keys(nets, budgets), options.only, options.out, rows=not options.measure)


def _full(options: argparse.Namespace) -> tuple[Bench, Sequence[str], Sequence[str]]:
    parts, backend = fashion_mnist(options.data), create_backend("onnxruntime", threads=1)
    return Bench(parts, backend, options.cache, CALIBRATION, SCORED, FINETUNING), FULL, BUDGETS


def _quick(options: argparse.Namespace) -> tuple[Bench, Sequence[str], Sequence[str]]:
    parts = fashion_mnist(options.data).first(QUICK_IMAGES)
    config = FinetuneConfig(epochs=1, batch_size=64)
    backend = create_backend("onnxruntime", threads=1)
    return Bench(parts, backend, options.cache, 64, 64, config), QUICK, ("1.05x",)


def run(bench: Bench, all_keys: Sequence[Key], patterns: Sequence[str], out: Path, *, rows: bool) -> None:
    """Make rows one after the other, then time all of their networks, writing what is known after each step."""
    chosen = wanted(all_keys, patterns, read(out)["rows"]) if rows else []
    names = sorted({key.net for key in chosen or all_keys})
    models = {name: trained(name, bench.parts, bench.cache, RECIPES[name]) for name in names}
    under = conditions(bench)
    made = {"conditions": _name_of(under), "commit": _commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    with changed(out) as results:
        for name, model in models.items():
            results["networks"].setdefault(name, {}).update(judged(bench, name, model))
    for number, key in enumerate(chosen, start=1):
        print(f"{key} ({number} of {len(chosen)})", flush=True)
        row = run_row(bench, key, models[key.net])
        with changed(out) as results:
            results["conditions"][made["conditions"]] = under
            results["rows"][str(key)] = row | made
        print(f"  {row}", flush=True)
    for net, model in models.items():
        found = measure(bench, net, model, read(out), seed=0)
        with changed(out) as results:
            for name, figures in found.items():
                entry = results["networks"][net] if name == ORIGINAL else results["rows"][name]
                entry |= figures | {"timed": f"{_machine()}, {made['date']}"}
    results = read(out)
    plot(results, out.with_suffix(".svg"))
    print(table(results), summary(results), sep="\n\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch.onnx")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
