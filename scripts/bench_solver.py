"""Time the exact solver: the published MobileNetV2-1.0 problem, and chains of up to 1,000 cuts.

- With `--tables` (a folder as `kim23_tables.py` tells it): T_opt, the chain and the whole frontier of MobileNetV2-1.0,
  timed apart and in turns over the importances given, against what the authors' solver took for one budget. The
  reference's seconds are those recorded in `reference_solutions.json`, measured on another day and not timed here.
- MobileNetV2 and ResNet-50 with all choices of all kinds, at counted latencies and made-up losses.
- Chains like MobileNet's, seeded: blocks of three convolutions, spans within a block and from block to block up to four
  blocks long, an activation or none (a state) at the end of each block; the same with each block beside a skip
  connection (a `Parallel`) where its input and output may be added. Timed in turns, memory measured in a run of its
  own.

The number of NumPy's threads does not matter, as the solver multiplies no matrices.
Results go to docs/solver.json with a plot beside it; without `--tables` the first part of an earlier run is kept. The
exit code is 2, before anything is timed, where the tables or the earlier results cannot be read.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from kim23_tables import ANSWERS, read_answers, read_json, read_latencies, refuse
from solver_networks import NETWORKS, network_problem

from depthcomp.errors import DepthCompError, TableError
from dp_solver import Chain, Choice, Parallel, frontier, two_stage_problem
from dp_solver.grid import Grid
from dp_solver.labels import solve_labels
from dp_solver.pareto import nondominated
from latency_tables.published.importances import import_importance

ROOT = Path(__file__).parents[1]
NET = "mbv2_1.0"
LENGTHS = (25, 50, 100, 200, 400, 1000)
BLOCK = 3  # convolutions: expand, depthwise, project
LONGEST = 4  # blocks in one span
CONVOLUTION_MS = (0.2, 0.35, 0.15)
JOIN_MS = 0.05
RESOLUTION_MS = 0.01
Task = Callable[[], object]
Record = dict[str, Any]


def in_turns(tasks: dict[str, Task], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each task took, in rounds so that drift hits all alike; one round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        gc.collect()
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary_ms(seconds: Sequence[float]) -> Record:
    """Return the median and the spread of timings, in ms."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    quartiles = {"q25_ms": round(1e3 * low, 3), "q75_ms": round(1e3 * high, 3)}
    return {"median_ms": round(1e3 * median, 3), **quartiles, "min_ms": round(1e3 * min(seconds), 3), "n": len(seconds)}


def bench_mobilenet(tables: Path, rounds: int) -> Record:
    """Return the timings of the published MobileNetV2-1.0 problem.

    Raises:
        TableError, ProblemError: the tables or the answers of the reference are missing or malformed.
    """
    net, answers = tables / NET, [row for row in read_answers(tables) if row["net"] == NET]
    if not answers:
        raise TableError(f"{tables / ANSWERS} has no answer for {NET}; give the folder of the published tables")
    latencies = read_latencies(net, "time_*.csv").ms
    scores = {name: import_importance(net / name) for name in sorted({row["importance"] for row in answers})}
    problems = {name: two_stage_problem(latencies, table, extend_importance=False) for name, table in scores.items()}
    tasks: dict[str, Task] = {}
    for name, table in scores.items():
        tasks[f"problem {name}"] = lambda table=table: two_stage_problem(latencies, table, extend_importance=False)
        tasks[f"frontier {name}"] = lambda name=name: frontier(problems[name].chain)
    seconds = in_turns(tasks, rounds)
    reference = [row["seconds"] for row in answers]
    building = [second for name in scores for second in seconds[f"problem {name}"]]
    solving = [second for name in scores for second in seconds[f"frontier {name}"]]
    found = summary_ms(solving)
    reference_s = {"min": min(reference), "median": statistics.median(reference), "max": max(reference)}
    return {
        "choices": len(next(iter(scores.values()))),
        "points": [len(frontier(problem.chain)) for problem in problems.values()],
        "frontier": found,
        "problem": summary_ms(building),
        "both": summary_ms([first + second for first, second in zip(building, solving, strict=True)]),
        "reference_s_per_budget": reference_s,
        "reference_source": "the authors' solver, prec 20 and 100, seconds recorded in reference_solutions.json",
        "ratio_of_frontier": [round(1e3 * second / found["median_ms"]) for second in (min(reference), max(reference))],
    }


def bench_networks(rounds: int) -> Record:
    """Return the timings of the whole frontier of networks, by name."""
    problems = {name: network_problem(name, seed=0) for name in NETWORKS}
    seconds = in_turns({name: lambda chain=chain: frontier(chain) for name, (chain, _) in problems.items()}, rounds)
    return {
        name: {"choices": choices, "cuts": chain.length, "points": len(frontier(chain)), **summary_ms(seconds[name])}
        for name, (chain, choices) in problems.items()
    }


def mobilenet_like(length: int, seed: int, *, skips: bool) -> Chain:
    """Return a chain like MobileNet's with random prices; `skips` puts every second block into a residual region."""
    rng = np.random.default_rng(seed)
    spans: dict[tuple[int, int], list[Choice | Parallel]] = {}
    for start in range(length):
        for end in range(start + 1, min(start + BLOCK * LONGEST, length) + 1):
            crosses = start // BLOCK != (end - 1) // BLOCK
            if not crosses or (start % BLOCK == 0 and (end % BLOCK == 0 or end == length)):
                spans[start, end] = list(_choices(rng, start, end))
    if skips:
        for start in range(BLOCK, length - BLOCK + 1, 2 * BLOCK):
            spans[start, start + BLOCK].append(_residual_block(rng))
    return Chain(length, spans, start=1)


def _choices(rng: np.random.Generator, start: int, end: int) -> list[Choice]:
    """Return the choices of a span: merging saves time and costs loss; the states at a block's ends are free."""
    convolutions = end - start
    kept_ms = sum(CONVOLUTION_MS[position % BLOCK] for position in range(start, end))
    cost = kept_ms * rng.uniform(0.9, 1.1) * (1.0 if convolutions == 1 else rng.uniform(0.5, 1.1))
    choices = []
    for before in (0, 1) if start % BLOCK == 0 and start else (1,):
        for after in (0, 1) if end % BLOCK == 0 else (1,):
            loss = (convolutions - 1) * rng.uniform(0.001, 0.02) + rng.uniform(-0.002, 0.002)
            choices.append(Choice((start, end, before, after), cost, loss, before, after))
    return choices


def _residual_block(rng: np.random.Generator) -> Parallel:
    """Return a block that is added to its input, both ends activated; its inside is a chain of its own."""
    spans = {}
    for start in range(BLOCK):
        for end in range(start + 1, BLOCK + 1):
            choice = _choices(rng, start, end)[0]
            spans[start, end] = [Choice(choice.key, choice.cost, choice.loss)]
    return Parallel(JOIN_MS, (Chain(BLOCK, spans), Chain(0, {})), before=1, after=1)


def bench_scaling(rounds: int) -> list[Record]:
    """Return timings, labels and memory for growing chains, in order of length."""
    problems = {
        (length, shape, resolution): mobilenet_like(length, seed=length, skips=shape == "parallels")
        for length in LENGTHS
        for shape in ("chain", "parallels")
        for resolution in (None, RESOLUTION_MS)
    }
    tasks = {str(name): lambda c=chain, r=name[2]: frontier(c, resolution_ms=r) for name, chain in problems.items()}
    seconds = in_turns(tasks, rounds)
    return [
        {
            "cuts": chain.length, "kind": kind, "resolution_ms": resolution, "seed": length,
            "choices": sum(len(items) for items in chain.spans.values()),
            **summary_ms(seconds[str((length, kind, resolution))]), **_size(chain, resolution),
        }
        for (length, kind, resolution), chain in problems.items()
    ]  # fmt: skip


def _size(chain: Chain, resolution_ms: float | None) -> Record:
    """Return the labels and the peak memory of one frontier, and what its grid may have given up."""
    tracemalloc.start()
    front = frontier(chain, resolution_ms=resolution_ms)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    solved = solve_labels(chain, nondominated if resolution_ms is None else Grid(resolution_ms).prune)
    middle = float(front.costs[0] + front.costs[-1]) / 2
    height = float(front.losses[0] - front.losses[-1])
    return {
        "points": len(front), "labels": solved.size, "peak_mb": round(peak / 1e6, 2), "slack_ms":
        round(front.slack_ms, 6), "given_up_in_the_middle": round(front.given_up(middle) / height, 4),
    }  # fmt: skip


def machine() -> str:
    """Return the processor, its cores, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def conditions() -> Record:
    """Return where and when the part that follows is measured; each part keeps its own."""
    return {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "load": round(os.getloadavg()[0], 1)}


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw time, labels and memory against the number of cuts."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "solver"  # the same text for the same figures
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4))
    fields = (("median_ms", "median time (ms)"), ("labels", "labels"), ("peak_mb", "peak memory (MB)"))
    for axes, (field, label) in zip(panels, fields, strict=True):
        for shape in ("chain", "parallels"):
            for resolution, style in ((None, "o-"), (RESOLUTION_MS, "s--")):
                rows = [row for row in records if (row["kind"], row["resolution_ms"]) == (shape, resolution)]
                name = f"{shape}, {'exact' if resolution is None else f'grid of {resolution} ms'}"
                axes.loglog([row["cuts"] for row in rows], [row[field] for row in rows], style, label=name)
        axes.set(xlabel="cuts", ylabel=label)
    panels[0].legend()
    figure.suptitle("The whole frontier of MobileNet-like chains")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def report(content: Record) -> str:
    """Return the results as text."""
    lines = []
    if "mobilenet_v2" in content:
        lines += _mobilenet_lines(content["mobilenet_v2"])
    if "networks" in content:
        lines.append(_measured(content["networks"]))
        for name in NETWORKS:
            row = content["networks"][name]
            lines.append(f"{name}, {row['choices']} choices: whole frontier ({row['points']} plans) in {_shown(row)}")
    lines.append(_measured(content["scaling"]))
    lines.append(f"{'cuts':>5} {'kind':>9} {'grid ms':>7} {'choices':>7} {'median ms':>10} {'quartiles':>19} {'n':>2}"
                 f" {'labels':>9} {'points':>6} {'peak MB':>8} {'slack ms':>8} {'given up':>8}")  # fmt: skip
    for row in content["scaling"]["chains"]:
        quartiles = f"{row['q25_ms']:.1f}-{row['q75_ms']:.1f}"
        lines.append(
            f"{row['cuts']:>5} {row['kind']:>9} {row['resolution_ms'] or 'exact':>7} {row['choices']:>7} "
            f"{row['median_ms']:>10.1f} {quartiles:>19} {row['n']:>2} {row['labels']:>9} {row['points']:>6} "
            f"{row['peak_mb']:>8.1f} {row['slack_ms']:>8.2f} {row['given_up_in_the_middle']:>8.1%}"
        )
    return "\n".join(lines)


def _mobilenet_lines(net: Record) -> list[str]:
    found, reference, ratio = net["frontier"], net["reference_s_per_budget"], net["ratio_of_frontier"]
    return [
        _measured(net),
        f"MobileNetV2-1.0, {net['choices']} choices: whole frontier ({net['points']} plans) in {_shown(found)}",
        f"  tables to chain, T_opt included: {_shown(net['problem'])}; both: {_shown(net['both'])}",
        f"  reference: {reference['min']} to {reference['max']} s for one budget, median {reference['median']} s "
        f"({net['reference_source']}), {ratio[0]} to {ratio[1]} times as long",
    ]


def _measured(part: Record) -> str:
    load = "not recorded" if part["load"] is None else part["load"]
    return f"{part['machine']}, {part['date']}; load of the machine in the minute before: {load}"


def _shown(timing: Record) -> str:
    quartiles = f"quartiles {timing['q25_ms']:.2f} to {timing['q75_ms']:.2f}"
    return f"{timing['median_ms']:.2f} ms (median; {quartiles}, n={timing['n']})"


def _dump(content: Record) -> str:
    """Return JSON with one chain a line."""
    scaling = content["scaling"]
    rows = ",\n".join("   " + json.dumps(row) for row in scaling["chains"])
    fields = [f'"{key}": {json.dumps(value)}' for key, value in scaling.items() if key != "chains"]
    lines = [f' "{key}": {json.dumps(content[key])}' for key in sorted(content) if key != "scaling"]
    lines.append(f' "scaling": {{{", ".join(fields)}, "chains": [\n{rows}\n  ]}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def earlier_results(out: Path) -> Record:
    """Return what an earlier run wrote that this run may keep; the folder is made where it is missing.

    Raises:
        TableError: the file cannot be read or holds something else, or the folder cannot be made.
    """
    advice = "name another file with --out, or delete it"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TableError(f"{out.parent} cannot be made ({error.strerror}); name another file with --out") from error
    if not out.exists():
        return {}
    content = read_json(out, advice)
    try:
        kept: Record = {"mobilenet_v2": content["mobilenet_v2"]} if "mobilenet_v2" in content else {}
        report(kept | {"scaling": content["scaling"]})
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise TableError(f"{out} holds no results of an earlier run; {advice}") from error
    return kept


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time what the arguments (the command line's where none are given) ask for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="folder with mbv2_1.0 and reference_solutions.json")
    parser.add_argument("--rounds", type=_rounds, default=50, help="repetitions for MobileNetV2")
    parser.add_argument("--scaling-rounds", type=_rounds, default=5, help="repetitions for the growing chains")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "solver.json", help="results, a plot beside them")
    options = parser.parse_args(arguments)
    try:
        content = earlier_results(options.out)
        if options.tables is not None:
            content["mobilenet_v2"] = conditions() | bench_mobilenet(options.tables, options.rounds)
    except DepthCompError as error:
        refuse(parser, error)
    content["networks"] = conditions() | bench_networks(options.rounds)
    content["scaling"] = conditions() | {"chains": bench_scaling(options.scaling_rounds)}
    print(report(content))
    try:
        options.out.write_text(_dump(content))
        plot(content["scaling"]["chains"], options.out.with_suffix(".svg"))
    except OSError as error:
        refuse(parser, TableError(f"{options.out} cannot be written ({error.strerror}); name another file with --out"))


if __name__ == "__main__":
    main()
