"""Benchmark of predicted latencies: sums over a latency table against whole networks as measured.

For each backend and network, a table is measured with the operators of random plans. The original and some of the plans
calibrate the line from sums to whole networks; the line then predicts the other plans, which it has not seen. All
networks of a backend are timed in interleaved rounds of one run, and once more in a second run that builds them anew.
The differences of the two runs are the noise floor: no prediction can be expected to err less. Weights are random;
images are 224x224, batches of one, one thread.

Results go to docs/prediction.json with a plot beside it; `--only` and `--backend` replace only their part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from depthcomp.export.onnx_model import to_onnx
from depthcomp.latency.pricing import Pricing
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, Plan, capture, fold_batch_norms, linearize, merge, random_plan
from latency_tables import Backend, OperatorSignature, create_backend, fit_affine, measure, time_interleaved
from latency_tables.tables.environment import cpu_name

ROOT = Path(__file__).parents[1]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "resnet18": torchvision.models.resnet18,
    "efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0"),
}
BACKENDS = ("onnxruntime", "openvino")
ORIGINAL = "original"
LEARNT, HELD_OUT = 16, 20  # random plans that calibrate the line, and that are predicted by it
SAMPLE_MS, WARMUP_MS = 50.0, 100.0  # as compressions measure whole networks
Record = dict[str, Any]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Network:
    """A network under several plans.

    Attributes:
        models: the ONNX model of each merged network, by name of its plan.
        operators: the operators that each consists of.
    """

    models: dict[str, bytes]
    operators: dict[str, list[OperatorSignature]]


def network_of(create: Callable[[], nn.Module], seed: int) -> Network:
    """Return a network under the empty plan and under random ones, drawn from `seed`."""
    torch.manual_seed(seed)
    example = torch.randn(1, 3, 224, 224)
    gm = capture(create().eval(), example)
    fold_batch_norms(gm)
    network = CapturedNetwork(gm)
    pricing = Pricing(network)
    candidates = {c.choice: c for c in pricing.candidates(network.spans(DEFAULT_LIMITS))}
    models, operators = {}, {}
    for name, plan in _plans(network, seed).items():
        models[name] = to_onnx(merge(linearize(network, plan), plan), (example,))
        replaced = set[str]().union(*(candidates[choice].span.nodes for choice in plan))
        operators[name] = [signature for node, signature in pricing.kept.items() if node not in replaced]
        operators[name] += [signature for choice in plan for signature in candidates[choice].signatures]
        print(f"  {name}: {len(operators[name])} operators", flush=True)
    return Network(models, operators)


def _plans(network: CapturedNetwork, seed: int) -> dict[str, Plan]:
    rng = np.random.default_rng(seed)
    names = [*(f"learnt {i}" for i in range(LEARNT)), *(f"held out {i}" for i in range(HELD_OUT))]
    return {ORIGINAL: Plan.of([]), **{name: random_plan(network, rng, DEFAULT_LIMITS) for name in names}}


def bench(network: Network, backend: Backend, rounds: int, seed: int) -> Record:
    """Return predicted and measured latencies of a network's plans, and how far they are apart."""
    wanted = {operator for operators in network.operators.values() for operator in operators}
    table = measure(wanted, backend, seed=seed)
    names = list(network.models)
    sums = np.array([sum(table.ms(operator) for operator in network.operators[name]) for name in names])
    runs = [_latencies(network.models, backend, rounds, seed + run) for run in range(2)]
    learnt = np.array([not name.startswith("held out") for name in names])
    predicted = _predicted(sums, runs[0], learnt)
    return {
        "entries": len(wanted),
        "unstable_entries": sum(entry.unstable for entry in table.entries.values()),
        **_errors(predicted[~learnt], runs[0][~learnt]),
        "uncalibrated_median_error": _rounded(np.median(_relative(sums[~learnt], runs[0][~learnt]))),
        "noise_floor": _noise(runs[0][~learnt], runs[1][~learnt]),
        "n_learnt": int(learnt.sum()),
        "n_held_out": int((~learnt).sum()),
        "plans": [
            {"plan": name, "sum_ms": _rounded(s), "predicted_ms": _rounded(p), "measured_ms": _rounded(a),
             "again_ms": _rounded(b)}
            for name, s, p, a, b in zip(names, sums, predicted, *runs, strict=True)
        ],
    }  # fmt: skip


def _latencies(models: dict[str, bytes], backend: Backend, rounds: int, seed: int) -> Array:
    """Return the latency in ms of each model, all timed side by side: the minimum of round medians, as of operators."""
    with ExitStack() as stack:
        runners = {}
        for name, model in models.items():
            runners[name] = backend.build(model)
            stack.callback(runners[name].close)
        timings = time_interleaved(runners, rounds=rounds, seed=seed, sample_ms=SAMPLE_MS, warmup_ms=WARMUP_MS)
    return np.array([timings[name].ms for name in models])


def _predicted(sums: Array, measured: Array, learnt: NDArray[np.bool_]) -> Array:
    line = fit_affine(sums[learnt].tolist(), measured[learnt].tolist())
    return np.array([line.predict(value) for value in sums])


def _errors(predicted: Array, measured: Array) -> Record:
    errors = _relative(predicted, measured)
    return {
        "median_error": _rounded(np.median(errors)),
        "p95_error": _rounded(np.quantile(errors, 0.95)),
        "rank_correlation": _rounded(stats.spearmanr(predicted, measured).statistic),
    }


def _noise(first: Array, second: Array) -> Record:
    """Return how far two runs of the same plans are apart, as they are and once drift common to all is taken out."""
    drift = float(np.median(second / first))
    apart, still = _relative(second, first), _relative(second / drift, first)
    return {
        "drift": _rounded(drift - 1),
        "median": _rounded(np.median(apart)),
        "median_without_drift": _rounded(np.median(still)),
        "p95_without_drift": _rounded(np.quantile(still, 0.95)),
    }


def _relative(found: Array, wanted: Array) -> Array:
    return np.abs(found - wanted) / wanted


def _rounded(value: float) -> float:
    return round(float(value), 4)


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw measured against predicted latencies of the held-out plans, as shares of the original."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prediction"  # the same text for the same figures
    from matplotlib import pyplot as plt

    backends = list(dict.fromkeys(record["backend"] for record in records))
    figure, panels = plt.subplots(1, len(backends), figsize=(5 * len(backends), 4.5), squeeze=False)
    for axes, backend in zip(panels[0], backends, strict=True):
        for record in (record for record in records if record["backend"] == backend):
            whole = record["plans"][0]["measured_ms"]
            rows = [row for row in record["plans"] if row["plan"].startswith("held out")]
            label = f"{record['network']}: {record['median_error']:.1%}, 95 % within {record['p95_error']:.1%}"
            shares = [[row[field] / whole for row in rows] for field in ("predicted_ms", "measured_ms")]
            axes.plot(*shares, "o", ms=4, label=label)
        ends = axes.get_xlim()
        axes.plot(ends, ends, "-", lw=0.8, color="0.5")
        axes.set(title=backend, xlabel="predicted (original = 1)", ylabel="measured (original = 1)")
        axes.legend(fontsize=8)
    figure.suptitle("Whole networks under plans that the calibration has not seen")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def report(records: Sequence[Record]) -> str:
    """Return the results as text."""
    lines = [f"{'backend':>12} {'network':>18}  median   p95   rank  uncalibrated  run to run (p95)  entries unstable"]
    lines += [
        f"{r['backend']:>12} {r['network']:>18}  {r['median_error']:>6.1%} {r['p95_error']:>5.1%} "
        f"{r['rank_correlation']:>6.3f}  {r['uncalibrated_median_error']:>12.1%}  "
        f"{r['noise_floor']['median_without_drift']:>6.1%} ({r['noise_floor']['p95_without_drift']:.1%})"
        f"{r['entries']:>14} {r['unstable_entries']:>8}"
        for r in records
    ]
    return "\n".join(lines)


def conditions(backend: str) -> Record:
    """Return where and when a part of the results is measured."""
    libraries = ("torch", backend)
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in libraries},
    }


def _dump(records: Sequence[Record]) -> str:
    """Return JSON with one plan a line."""
    parts = []
    for record in records:
        rows = ",\n".join("    " + json.dumps(row) for row in record["plans"])
        fields = [f'   "{key}": {json.dumps(value)}' for key, value in record.items() if key != "plans"]
        parts.append("  {\n" + ",\n".join(fields) + f',\n   "plans": [\n{rows}\n   ]\n  }}')
    return "[\n" + ",\n".join(parts) + "\n]\n"


def main() -> None:
    """Measure what the arguments ask for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="a backend; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of each run")
    parser.add_argument("--seed", type=int, default=0, help="draws weights, plans and the order of rounds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "prediction.json", help="results, a plot beside")
    options = parser.parse_args()
    records = json.loads(options.out.read_text()) if options.out.exists() else []
    found = {(record["backend"], record["network"]): record for record in records}
    for name in options.only or NETWORKS:
        print(f"{name}: exporting {1 + LEARNT + HELD_OUT} networks", flush=True)
        network = network_of(NETWORKS[name], options.seed)
        for backend in options.backend or BACKENDS:
            head = {"backend": backend, "network": name, "seed": options.seed, "rounds": options.rounds}
            here = conditions(backend)
            result = bench(network, create_backend(backend), options.rounds, options.seed)
            found[backend, name] = head | here | result
            print(report([found[backend, name]]), flush=True)
    order = [(backend, name) for backend in BACKENDS for name in NETWORKS]
    records = [found[key] for key in order if key in found]
    options.out.write_text(_dump(records))
    plot(records, options.out.with_suffix(".svg"))
    print(report(records))


if __name__ == "__main__":
    main()
