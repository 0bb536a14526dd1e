"""Benchmark of distillation with few photos and no labels: the demo's network, judged on held-out photos.

    python scripts/demo.py --out demo_output
    python scripts/bench_distillation.py demo_output --json docs/distillation.json

Training uses only the original's outputs for the demo's calibration crops. The held-out photos judge the network and
its moving average after each epoch, and here they also choose what is returned. So the result is the most that
distillation could give if the best epoch were known.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from demo import CROPS, PIXELS, agreement, outputs
from photos import CALIBRATION, HELD_OUT, crops
from torch import Tensor

from depthcomp.results.loading import load_result
from depthcomp.results.result import CompressionResult
from depthcomp.training.config import FinetuneConfig
from depthcomp.training.plan import finetune_plan
from latency_tables.tables.environment import cpu_name

LEARNING_RATES = (1e-4, 1e-5)


def distilled(result: CompressionResult, train: Tensor, held_out: Tensor, config: FinetuneConfig) -> dict[str, Any]:
    """Return what became of the network, by epoch and in the end."""
    tuned = finetune_plan(result.trainable, result.plan, result.original, train, held_out, config)
    epochs = [round(min(known["val_loss"], known["averaged_val_loss"]), 4) for known in tuned.record.history]
    wanted = outputs(result.original, held_out)
    return {
        "learning_rate": config.learning_rate,
        "freeze_norms": config.freeze_norms,
        "kl_by_epoch": [round(tuned.record.loss_before, 4), *epochs],
        "returned": tuned.record.best,
        "agreement": round(agreement(wanted, outputs(tuned.model, held_out)), 4),
        "seconds": round(tuned.record.seconds),
    }


def main() -> None:
    """Distil at each learning rate, with and without new statistics of norms, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what demo.py left")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = load_result(options.folder)
    train = crops(CALIBRATION, CROPS, smallest=0.15, seed=options.seed, jitter=True, **PIXELS)
    held_out = crops(HELD_OUT, CROPS, smallest=0.5, seed=options.seed + 1, **PIXELS)
    rows = []
    for rate, frozen in itertools.product(LEARNING_RATES, (False, True)):
        config = FinetuneConfig(
            epochs=options.epochs, batch_size=16, learning_rate=rate, freeze_norms=frozen, channels_last=True,
            seed=options.seed,
        )  # fmt: skip
        rows.append(distilled(result, train, held_out, config))
        print(rows[-1], flush=True)
    if options.json is not None:
        content = {
            "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "torch": torch.__version__, "seed": options.seed,
            "trained_crops": len(train), "held_out_crops": len(held_out), "epochs": options.epochs, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
