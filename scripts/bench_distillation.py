"""Does distillation help where there are few photos and no labels? The demo's network, judged on held-out photos.

    python scripts/demo.py --out demo_output
    python scripts/bench_distillation.py demo_output --json docs/distillation.json

All that is trained on are the original's outputs for crops of 15 of the demo's 19 calibration photos; crops of the
other four decide which epoch, or the untrained network, is returned. Nothing is decided by the held-out photos.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from demo import CROPS, PIXELS, agreement, outputs
from photos import CALIBRATION, HELD_OUT, crops
from torch import Tensor, nn

from depthcomp.importance import divergence
from depthcomp.plan_tuning import finetune_plan
from depthcomp.result import CompressionResult
from depthcomp.saved_result import load_result
from depthcomp.training.config import FinetuneConfig
from latency_tables.environment import cpu_name

VALIDATING = 4  # calibration photos
LEARNING_RATES = (1e-3, 1e-4, 1e-5)


def judged(original: Tensor, network: nn.Module, images: Tensor) -> dict[str, float]:
    """Return how near a network's outputs are to the original's on images."""
    found = outputs(network, images)
    return {"agreement": round(agreement(original, found), 4), "kl": round(divergence(original, found), 4)}


def distilled(
    result: CompressionResult, train: Tensor, val: Tensor, config: FinetuneConfig
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that fine-tuning returns, and what validation said of each epoch."""
    tuned = finetune_plan(result.trainable, result.plan, result.original, train, val, config)
    epochs = [round(min(h["val_loss"], h["averaged_val_loss"]), 4) for h in tuned.record.history]
    return tuned.model, {
        "learning_rate": config.learning_rate, "returned": tuned.record.best, "seconds": round(tuned.record.seconds),
        "validation_kl": [round(tuned.record.loss_before, 4), *epochs],
    }  # fmt: skip


def main() -> None:
    """Distil at each learning rate and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what demo.py left")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = load_result(options.folder)
    data = crops(CALIBRATION, CROPS, smallest=0.15, seed=options.seed, jitter=True, **PIXELS)
    train, val = data[: -VALIDATING * CROPS], data[-VALIDATING * CROPS :]
    held_out = crops(HELD_OUT, CROPS, smallest=0.5, seed=options.seed + 1, **PIXELS)
    wanted = outputs(result.original, held_out)
    rows: list[dict[str, Any]] = [{"returned": "untrained", **judged(wanted, result.model, held_out)}]
    print(f"untrained: {rows[0]['agreement']:.1%} agree, KL {rows[0]['kl']:.3f} ({len(held_out)} crops)", flush=True)
    for rate in LEARNING_RATES:
        config = FinetuneConfig(
            epochs=options.epochs, batch_size=16, learning_rate=rate, channels_last=True, seed=options.seed
        )
        network, row = distilled(result, train, val, config)
        rows.append({**row, **judged(wanted, network, held_out)})
        print(f"{rate:g}: validation KL {row['validation_kl']}, returned {row['returned']}", flush=True)
        print(f"  {rows[-1]['agreement']:.1%} agree, KL {rows[-1]['kl']:.3f} on held-out photos", flush=True)
    if options.json is not None:
        content = {
            "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "torch": torch.__version__, "seed": options.seed,
            "trained_crops": len(train), "validating_crops": len(val), "held_out_crops": len(held_out),
            "epochs": options.epochs, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
