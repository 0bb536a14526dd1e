"""The results of the accuracy benchmark as JSON, as a printed table and as a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from depthcomp_files import locked, write_atomically

__all__ = ["Results", "changed", "plot", "read", "summary", "table", "write"]

Row = dict[str, Any]
Results = dict[str, Any]


def read(path: Path) -> Results:
    """Return the results so far: conditions by their names, networks, rows by keys."""
    if not path.exists():
        return {"conditions": {}, "networks": {}, "rows": {}}
    found: Results = json.loads(path.read_text())
    return found


def write(path: Path, results: Results) -> None:
    """Write results, one row a line, whole or not at all."""
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(results["rows"].items()))
    head = [f' "{name}": {json.dumps(results[name])}' for name in ("conditions", "networks")]
    write_atomically(path, ("{\n" + ",\n".join([*head, f' "rows": {{\n{rows}\n }}']) + "\n}\n").encode())


@contextmanager
def changed(path: Path) -> Iterator[Results]:
    """Let a caller change the results, which are then written; processes that share a file take turns."""
    with locked(path, "results"):
        results = read(path)
        yield results
        write(path, results)


def table(results: Results) -> str:
    """Return the results as text, accuracies of the test part in per cent, a line for each row.

    What a row took is without an importance that another row of its method and seed had found already.
    """
    lines = [
        f"{'network':<12}{'method':<15}{'asked':>6}{'seed':>5}{'spread':>8}{'faster':>8}"
        f"{'untrained':>11}{'new norms':>11}{'tuned':>8}{'drop':>7}{'importance':>12}{'row':>10}"
    ]
    for net, found in sorted(results["networks"].items()):
        lines.append(f"{net:<12}{'original':<15}{'':>11}{_latency(found)}{'':>22}{100 * found['test']:>8.2f}")
        rows = [row for _, row in sorted(results["rows"].items()) if row["net"] == net]
        lines += [
            _line(row, found["test"]) for row in sorted(rows, key=lambda r: (r["budget"], r["method"], r["seed"]))
        ]
    return "\n".join(lines)


def _line(row: Row, base: float) -> str:
    head = f"{row['net']:<12}{row['method']:<15}{row['budget']:>6}{row['seed']:>5}"
    if "infeasible" in row:
        return f"{head}  cannot: {row['infeasible']}"
    norms = row.get("untrained_norms_test")
    return (
        f"{head}{_latency(row)}{100 * row['untrained_test']:>11.2f}{'' if norms is None else f'{100 * norms:.2f}':>11}"
        f"{100 * row['test']:>8.2f}{100 * (base - row['test']):>7.2f}{_seconds(row['importance_s']):>12}"
        f"{_seconds(row['row_s']):>10}"
    )


def _seconds(found: float | None) -> str:
    return "-" if found is None else f"{found:.0f} s"


def _latency(found: Row) -> str:
    if "ms" not in found:
        return f"{'-':>8}{'-':>8}"
    return f"{found['spread']:>8.1%}{found['speedup']:>7.2f}x"


def summary(results: Results) -> str:
    """Return as text, for each network, budget and method, the mean drop over the seeds in points, and their range.

    A drop is from the original as it was trained; the control tells what further epochs alone change. What the
    importance costs is the least of the method's seeds, as other work on the machine only adds time.
    """
    lines = [
        f"{'network':<12}{'asked':<7}{'method':<15}{'seeds':>7}{'faster':>8}{'drop':>7}{'range':>15}{'importance':>12}"
    ]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results["rows"].values():
        groups.setdefault((row["net"], row["budget"], row["method"]), []).append(row)
    for (net, budget, method), rows in sorted(groups.items()):
        made = [row for row in rows if "infeasible" not in row]
        head = f"{net:<12}{budget:<7}{method:<15}{f'{len(made)} of {len(rows)}':>7}"
        lines.append(head + _drops(made, results["networks"][net]["test"]) if made else f"{head}  cannot")
    return "\n".join(lines)


def _drops(rows: Sequence[Row], base: float) -> str:
    """Return the figures of rows that differ in nothing but the seed."""
    drops = [100 * (base - row["test"]) for row in rows]
    speedups = [row["speedup"] for row in rows if "speedup" in row]
    costs = [row["importance_s"] for row in rows if row["importance_s"] is not None]
    return (
        f"{f'{mean(speedups):.2f}x' if speedups else '-':>8}{mean(drops):>7.2f}"
        f"{f'{min(drops):.2f} to {max(drops):.2f}':>15}{_seconds(min(costs, default=None)):>12}"
    )


def plot(results: Results, path: Path) -> None:
    """Draw the accuracy of each method against its measured latency; a bar is the range over the seeds.

    Latencies are shares of the original's in the same run, so that runs on several machines may stand side by side.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "accuracy"  # the same text for the same figures
    from matplotlib import pyplot as plt

    networks = sorted(results["networks"])
    figure, panels = plt.subplots(1, len(networks), figsize=(6 * len(networks), 4.5), squeeze=False)
    methods = sorted({row["method"] for row in results["rows"].values()})
    for axes, net in zip(panels[0], networks, strict=True):
        for index, method in enumerate(methods):
            points = _points(results, net, method)
            if points:
                shares, centres, below, above = zip(*points, strict=True)
                axes.errorbar(
                    shares, centres, (below, above), fmt="o-", ms=4, lw=1, capsize=3, color=f"C{index}", label=method
                )
        base = 100 * results["networks"][net]["test"]
        axes.axhline(base, lw=0.8, ls=":", color="0.4", label=f"original, {base:.2f} %")
        axes.set(
            title=net, xlabel="measured latency, share of the original's", ylabel="test accuracy after fine-tuning, %"
        )
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _points(results: Results, net: str, method: str) -> list[tuple[float, float, float, float]]:
    """Return for each budget mean share of latency, mean accuracy, and how far the seeds lie below and above it."""
    found: dict[str, list[Row]] = {}
    for row in results["rows"].values():
        if (row["net"], row["method"]) == (net, method) and "ms" in row:
            found.setdefault(row["budget"], []).append(row)
    return sorted(_point(rows) for rows in found.values())


def _point(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    shares = [100 * row["test"] for row in rows]
    centre = mean(shares)
    return mean(1 / row["speedup"] for row in rows), centre, centre - min(shares), max(shares) - centre
