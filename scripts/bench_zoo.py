"""Sweep over the zoo: is every convolutional network of torchvision and timm captured and merged exactly?

Every torchvision classification model with convolutions, and the first model of each timm family with at least
5 convolutions and 3 batch norms, all with random weights and random statistics of their norms. For each:

- captured by `fx_passes.capture`, equal to the original on another image to 1e-5 (relative, in float32);
- every node of the captured graph knows its shape;
- for seeded random plans of all kinds, merged equals linearised to 1e-9 (relative, in float64);
- a plan that removes no channel is the identity, and channels that are copies or that nothing reads go without a loss
  (1e-9);
- capturing and enumerating the spans takes at most 10 s, 3 s for MobileNetV2.

Images are as small as a network takes; torchvision's ViTs are built for small ones.

Each network runs in a process of its own under a time and a memory limit, with its share of the cores. The results
file is replaced after each network, so that a killed sweep goes on where it stopped; `--retry` repeats what failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from zoo_check import Record, check
from zoo_nets import Net, timm_nets, torchvision_nets

from depthcomp_files import write_atomically

ROOT = Path(__file__).parents[1]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_FORK = multiprocessing.get_context("fork")  # the libraries are imported once


@dataclass(slots=True)
class Running:
    """A network that is being checked in a process of its own."""

    net: Net
    process: BaseProcess
    receiver: Connection
    deadline: float

    def record(self) -> Record | None:
        """Return what the process reported, or how it ended; None while it runs in time."""
        if self.receiver.poll():
            try:
                return self._close(self.receiver.recv())
            except EOFError:
                self.process.join()
                return self._close(self._failure(f"the process ended with exit code {self.process.exitcode}"))
        if time.monotonic() > self.deadline:
            self.process.kill()
            return self._close(self._failure("the time limit was reached"))
        return None

    def _failure(self, cause: str) -> Record:
        return {"key": self.net.key, "cause": cause}

    def _close(self, record: Record) -> Record:
        self.process.join()
        self.receiver.close()
        return record


def start(net: Net, options: argparse.Namespace) -> Running:
    """Return the check of one network, begun in a new process."""
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(sender, net, options))
    process.start()
    sender.close()
    return Running(net, process, receiver, time.monotonic() + options.timeout_s)


def _work(sender: Connection, net: Net, options: argparse.Namespace) -> None:
    size = int(options.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // options.jobs))
    sender.send(check(net, options.plans))


def sweep(nets: Iterable[Net], options: argparse.Namespace) -> Iterator[Record]:
    """Yield a record for each network as they finish, the smallest networks first."""
    pending, running = sorted(nets, key=lambda net: -net.parameters), list[Running]()  # the last is taken first
    while pending or running:
        while pending and len(running) < options.jobs:
            running.append(start(pending.pop(), options))
        wait([job.receiver for job in running], timeout=1)
        for job in list(running):
            record = job.record()
            if record is not None:
                running.remove(job)
                yield record


class Results:
    """The results file: which networks there are, and what became of those that were swept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.records: dict[str, Record] = {record["key"]: record for record in self.content.get("records", [])}

    def nets(self) -> list[Net]:
        """Return the networks of the zoo, from the file where it lists them for the installed libraries."""
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
        if self.content.get("versions") != versions:
            print("choosing the networks (minutes, once) ...", flush=True)
            chosen = [*torchvision_nets(), *timm_nets()]
            self.content |= {"versions": versions, "nets": [asdict(net) for net in chosen]}
            self.write()
        return [Net(**net) for net in self.content["nets"]]

    def add(self, record: Record, plans: int) -> None:
        """Put in one record and replace the file."""
        self.records[record["key"]] = record
        self.content |= {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "seeds": list(range(plans))}
        self.write()

    def write(self) -> None:
        """Replace the file."""
        order = {f"{net['library']}:{net['name']}": i for i, net in enumerate(self.content["nets"])}
        self.content["records"] = sorted(self.records.values(), key=lambda record: order[record["key"]])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, _dump(self.content).encode())


def _dump(content: dict[str, Any]) -> str:
    """Return JSON with one network a line."""
    lines = []
    for key in sorted(content):
        value = content[key]
        if key in ("nets", "records"):
            rows = ",\n".join("  " + json.dumps(row, sort_keys=True) for row in value)
            lines.append(f' "{key}": [\n{rows}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(value, sort_keys=True)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def machine() -> str:
    """Return the processor and its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def summary(nets: list[Net], records: dict[str, Record]) -> str:
    """Return the table of what passed, and a line for each network that did not."""
    lines = [f"{'':>12}  nets  swept  passed  with plans  narrow  symbolic_trace  slowest s"]
    for library in ("torchvision", "timm"):
        swept = [records[net.key] for net in nets if net.library == library and net.key in records]
        total = sum(net.library == library for net in nets)
        slowest = max((r["capture_s"] + r["enumerate_s"] for r in swept if "enumerate_s" in r), default=0.0)
        counts = (_count(swept, lambda r: not r["cause"]), _count(swept, lambda r: bool(r.get("plans"))))
        narrow = _count(swept, lambda r: bool(r.get("kinds", {}).get("narrow")))
        plain = _count(swept, lambda r: bool(r.get("symbolic_trace")))
        figures = f"{len(swept):>6} {counts[0]:>7} {counts[1]:>11} {narrow:>7} {plain:>15} {slowest:>10.1f}"
        lines.append(f"{library:>12} {total:>5} {figures}")
    failed = [record for record in records.values() if record["cause"]]
    return "\n".join([*lines, *(f"FAILED {record['key']}: {record['cause']}" for record in failed)])


def _count(records: list[Record], holds: Callable[[Record], bool]) -> int:
    return sum(holds(record) for record in records)


def plot(records: dict[str, Record], path: Path) -> None:
    """Draw the number of candidate choices against depth for torchvision's ResNets."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "zoo"  # the same text for the same figures
    from matplotlib import pyplot as plt

    found = [(name, records[f"torchvision:{name}"]) for name in RESNETS if f"torchvision:{name}" in records]
    depth, choices = [r["convolutions"] for _, r in found], [r["choices"] for _, r in found]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(depth, choices, "o-")
    for (name, _), x, y in zip(found, depth, choices, strict=True):
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, -10))
    axes.set(xlabel="convolutions", ylabel="candidate choices", xlim=(0, None), ylim=(0, None))
    axes.set_title("Candidate choices against depth")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Sweep what the arguments ask for and is not yet in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="library:name or name; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--plans", type=int, default=3, help="random plans per network; 0 checks the capture alone")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for one network")
    parser.add_argument("--memory-gb", type=float, default=18.0, help="for one network")
    parser.add_argument("--retry", action="store_true", help="sweep again what failed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "zoo.json", help="results; the plot stands beside")
    options = parser.parse_args()
    results = Results(options.out)
    nets = results.nets()
    wanted = [net for net in nets if options.only is None or {net.key, net.name} & set(options.only)]
    for record in sweep([net for net in wanted if _is_due(net, results, options)], options):
        results.add(record, options.plans)
        print(f"{len(results.records)}/{len(nets)} {record['key']}: {record['cause'] or 'ok'}", flush=True)
    if all(f"torchvision:{name}" in results.records for name in RESNETS):
        plot(results.records, options.out.with_name("zoo_depth.svg"))
    print(summary(nets, results.records))


def _is_due(net: Net, results: Results, options: argparse.Namespace) -> bool:
    record = results.records.get(net.key)
    return record is None or options.only is not None or (options.retry and bool(record["cause"]))


if __name__ == "__main__":
    main()
