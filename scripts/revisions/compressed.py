"""One compression by the checkout that PYTHONPATH names, and what its network computes on held-out images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from arithmetic_backend import ArithmeticBackend
from networks import NETWORKS

import depthcomp
from latency_tables import LatencyTable


def main() -> None:
    """Compress, save, load what was saved, and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("budget")
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="depthcomp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixed", type=Path, help="result whose latency table and importance are taken")
    options = parser.parse_args()
    print(f"depthcomp of {Path(depthcomp.__file__).parent}", flush=True)
    torch.set_num_threads(options.threads)
    network, fixed = NETWORKS[options.network], options.fixed
    depthcomp.compress_depth(
        network.model(), options.budget, data=network.calibration(), backend=ArithmeticBackend(),
        method=options.method, table=None if fixed is None else LatencyTable.load(fixed / "latency_table.json"),
        importance="calibrated" if fixed is None else fixed / "importance.json",
        output_dir=options.out, seed=options.seed,
    )  # fmt: skip
    with torch.no_grad():
        outputs = depthcomp.load(options.out)(network.held_out())
    np.save(options.out / "outputs.npy", outputs.numpy())


if __name__ == "__main__":
    main()
