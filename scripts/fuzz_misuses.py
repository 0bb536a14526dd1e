"""Call `compress_depth` wrongly in many ways: every outcome must be a result or a DepthCompError.

Each run draws a network of `try_nets.py`, a misuse of `misuses.py` and what that leaves open. Latencies are counted and
plans drawn at random, so that a misuse that passes costs little. The exit code is 1 where another exception comes out.

    python scripts/fuzz_misuses.py --runs 200 --out docs/misuses.json
    python scripts/fuzz_misuses.py --runs 200 --only "Keywords" --only "mobilenet*" --out docs/misuses.json
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from misuses import MISUSES, Call, misused
from revisions.arithmetic_backend import ArithmeticBackend
from torch import Tensor, nn
from try_nets import NETS

from depthcomp import DepthCompError, compress_depth
from depthcomp_errors.first_line import first_line
from depthcomp_files import write_atomically

RESULT = "a result"


def outcome(model: nn.Module, images: Tensor, misuse: str, rng: np.random.Generator) -> dict[str, str]:
    """Return what comes of a misused call: its arguments, the class of the error, and the sentence."""
    with tempfile.TemporaryDirectory() as folder:
        changed = misused(misuse, Call(model, images, Path(folder), rng))
        arguments: dict[str, Any] = {
            "model": model, "budget": "90%", "data": [*images.split(2)], "backend": ArithmeticBackend(),
            "method": "random", **changed,
        }  # fmt: skip
        told = {"misuse": misuse, "changed": ", ".join(f"{name}={value!r:.60}" for name, value in changed.items())}
        try:
            compress_depth(**arguments)
        except DepthCompError as error:
            return {**told, "outcome": type(error).__name__, "message": str(error)}
        except Exception as error:  # what the fuzzing looks for
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            return {**told, "outcome": "raw", "message": f"{type(error).__name__}: {first_line(error)} ({at})"}
    return {**told, "outcome": RESULT, "message": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run misuses and write what came of them; return 1 if a raw exception did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of all outcomes")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="names of networks, with * for any")
    options = parser.parse_args(arguments)
    whole = {name: net for name, net in NETS.items() if net.module is None and not name.endswith(".onnx")}
    names = [name for name in whole if not options.only or any(fnmatchcase(name, each) for each in options.only)]
    rng, rows = np.random.default_rng(options.seed), list[dict[str, str]]()
    for _ in range(options.runs):
        name, misuse = names[int(rng.integers(len(names)))], list(MISUSES)[int(rng.integers(len(MISUSES)))]
        torch.manual_seed(0)
        images = torch.cat(NETS[name].data()[:3])
        rows.append({"net": name, **outcome(NETS[name].build().eval(), images, misuse, rng)})
        if rows[-1]["outcome"] == "raw":
            print(rows[-1], flush=True)
    found = Counter(row["outcome"] for row in rows)
    content = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": options.seed, "outcomes": dict(found), "rows": rows}
    write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
    print(", ".join(f"{count} x {what}" for what, count in found.most_common()))
    return int(found["raw"] > 0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.exit(main())
