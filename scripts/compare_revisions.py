"""Two checkouts of this project on the same networks: do they choose equal plans and return equal networks?

Latency table and importance file come from one run of the first checkout. Latencies follow from the ONNX graphs alone
(see `revisions/arithmetic_backend.py`), so no measurement makes a difference. The first checkout's runs stay in the
work folder and serve later comparisons; the second one's are made anew. Exits with 1 where anything differs. It needs
the packages of requirements-demo.txt.

    python scripts/compare_revisions.py --before ../depthcomp-old --after . --work compare_work
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPRESS = Path(__file__).parent / "revisions" / "compressed.py"
NETWORKS = ("timm:mobilenetv2_050", "torchvision:resnet18", "demo")
BUDGETS = ("90%", "80%", "70%", "60%", "50%")
TOLERANCE = 1e-6  # of the largest output
THREADS, SEED = 1, 0
OUTPUTS, LOG = "outputs.npy", "log.txt"
_DEFAULTS: dict[str, Any] = {"kernel": None, "end": "original", "pruned": []}
_FIELDS = ("entry", "exit", "kind", *_DEFAULTS)


@dataclass(frozen=True, slots=True)
class Run:
    """One compression by one checkout.

    Attributes:
        checkout: root of the checkout.
        network: name of the network.
        method: as `depthcomp.compress_depth` takes it.
        budget: as `depthcomp.compress_depth` takes it.
        folder: where its result lies, with its outputs on held-out images.
        fixed: folder of the run whose latency table and importance it takes; None to make both.
    """

    checkout: Path
    network: str
    method: str
    budget: str
    folder: Path
    fixed: Path | None = None

    @property
    def done(self) -> bool:
        """Whether it has run to the end."""
        return (self.folder / OUTPUTS).exists()

    def carry_out(self) -> None:
        """Compress in a process of its own; what is in the folder already goes.

        Raises:
            CalledProcessError: the process failed; what it printed is in its log.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        options = ["--method", self.method, "--threads", str(THREADS), "--seed", str(SEED)]
        options += [] if self.fixed is None else ["--fixed", str(self.fixed)]
        paths = os.pathsep.join(map(str, (self.checkout, self.checkout / "scripts")))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(THREADS)}
        with (self.folder / LOG).open("w") as log:
            subprocess.run(
                [sys.executable, COMPRESS, self.network, self.budget, self.folder, *options],
                check=True, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def choices(self) -> list[dict[str, Any]]:
        """Return the choices of its plan."""
        return choices((self.folder / "plan.json").read_text())

    def outputs(self) -> NDArray[np.float64]:
        """Return what its network computes on held-out images, (n, classes)."""
        found: NDArray[np.float64] = np.load(self.folder / OUTPUTS).astype(np.float64)
        return found


def choices(plan: str) -> list[dict[str, Any]]:
    """Return what is chosen in the text of a plan.json, whatever its version, in one form."""
    stored = [{**_DEFAULTS, **choice} for choice in json.loads(plan)["choices"]]
    return [{name: choice[name] for name in _FIELDS} for choice in stored]


def relative_difference(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Return the largest difference between two arrays relative to the largest value wanted."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def revision(checkout: Path) -> str:
    """Return the commit of a checkout, with a mark where files are changed."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude", "*"]
    told: str = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return told.strip()


def runs_before(checkout: Path, work: Path, network: str, method: str, budgets: Iterable[str]) -> list[Run]:
    """Return the runs of the first checkout, made unless they lie in the work folder already.

    Raises:
        SystemExit: one failed, so that there is nothing to compare with.
    """
    home = work / network / method / revision(checkout)
    fixed = Run(checkout, network, method, BUDGETS[0], home / "fixed")
    found = [replace(fixed, budget=budget, folder=home / budget, fixed=fixed.folder) for budget in budgets]
    for run in (fixed, *found):
        if not run.done:
            try:
                run.carry_out()
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"the run in {run.folder} failed; its {LOG} tells why") from error
    return found


def compared(before: Run, checkout: Path | None) -> bool:
    """Run one compression by the second checkout, print how it compares, and say whether all is equal."""
    wanted = before.choices()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(c["kind"] for c in wanted).items()))
    print(f"{before.network:22} {before.method:10} {before.budget:7} {kinds:24}", end=" ", flush=True)
    if checkout is None:
        print("not compared")
        return True
    after = replace(before, checkout=checkout, folder=before.folder.parent.parent / "after" / before.budget)
    try:
        after.carry_out()
    except subprocess.CalledProcessError:
        print(f"failed: see {after.folder / LOG}")
        return False
    same, apart = after.choices() == wanted, relative_difference(after.outputs(), before.outputs())
    print(f"{'yes' if same else 'NO':9} {apart:.1e}{'' if apart <= TOLERANCE else f' above {TOLERANCE:g}'}", flush=True)
    return same and apart <= TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the command line says; return 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout whose results count as right")
    parser.add_argument("--after", type=Path, help="checkout to compare with it; absent: only the first one runs")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results of all runs")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS)
    parser.add_argument("--budget", nargs="+", default=BUDGETS)
    parser.add_argument("--method", nargs="+", default=["depthcomp"], help="as for depthcomp.compress_depth")
    options = parser.parse_args(arguments)
    for checkout in filter(None, (options.before, options.after)):
        if not (checkout / "depthcomp").is_dir():  # an installed depthcomp would run in its place
            parser.error(f"{checkout} is no checkout of this project: it has no folder depthcomp")
    before, after = options.before.resolve(), None if options.after is None else options.after.resolve()
    print(f"before {revision(before)}, after {'-' if after is None else revision(after)}")
    print(f"torch {version('torch')}, Python {platform.python_version()}, {THREADS} thread, seed {SEED}")
    print(f"{'network':22} {'method':10} {'budget':7} {'choices':24} {'same plan':9} difference of outputs, relative")
    equal = [
        compared(run, after)
        for network in options.network
        for method in options.method
        for run in runs_before(before, options.work.resolve(), network, method, options.budget)
    ]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
