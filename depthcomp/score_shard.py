"""A part of the scores of an importance that trains each choice: many processes or machines share the work.

    score_shard(model, "0/4", "scores", table="desktop.json", data=loader, importance="kim23")    # and 1/4, 2/4, 3/4
    compress_depth(model, "70%", table="desktop.json", data=loader, importance="kim23", output_dir="scores")

The shards of one machine append to one journal; the journals of several are put together by `cat`, in any order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from depthcomp.compress import LEAST_SAVING
from depthcomp.errors import DepthCompError
from depthcomp.files import require_writable
from depthcomp.importance_config import FinetunedImportance
from depthcomp.preparation import Prepared, measurable, prepare
from depthcomp.pricing import Candidate, Pricing
from depthcomp.progress import Progress, silent
from depthcomp.scoring import Importance, journal_of, most_images, parse_importance
from depthcomp.trained_importance import entries_of, finetuned
from latency_tables import LatencyTable
from latency_tables.work import Shard

__all__ = ["score_shard"]


def score_shard(
    model: nn.Module,
    shard: str | Shard,
    output_dir: str | os.PathLike[str],
    *,
    table: LatencyTable | str | os.PathLike[str],
    importance: Importance,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    data: Iterable[Any] | None = None,
    val_data: Iterable[Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> int:
    """Train and score a part of the choices into `output_dir`/importance.jsonl; return how many entries that are.

    Entries that stand there already are not trained again. `compress_depth` with the same arguments then trains what is
    left and goes on.

    Args:
        model: a trained CNN; it is not changed.
        shard: which part, INDEX/COUNT, counted from 0.
        output_dir: the folder that `compress_depth` will be given.
        table: a complete latency table, which decides what is worth scoring; nothing is measured.
        importance: "kim23", "layermerge", or settings of the same kind.
        example_inputs: as for `compress_depth`, like the following.
        data: calibration images.
        val_data: images to score on.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        TableError: there is no such shard, the table lacks an operator, or a file cannot be read or written.
        DepthCompError: the importance is one that is not trained.
        CaptureError, DataError: as `compress_depth`.
    """
    method, part = parse_importance(importance), shard if isinstance(shard, Shard) else Shard.parse(shard)
    if not isinstance(method, FinetunedImportance):
        raise DepthCompError(
            f"importance (={importance!r}) has no shards: only one that trains each choice is worth sharing, such as "
            "'kim23' or FinetunedImportance(steps=100)"
        )
    known = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
    prepared = measurable(
        prepare(model, example_inputs, data, val_data, seed, most=most_images(method)), known.failures
    )  # fmt: skip
    candidates = _worthwhile(prepared, known)
    entries = sorted(entries_of(prepared.captured, candidates, method))[part.index :: part.count]
    finetuned(
        prepared.captured, candidates, prepared.calibration, method,
        journal_of(prepared, candidates, method, require_writable(output_dir), seed),
        entries=entries, seed=seed, progress=progress,
    )  # fmt: skip
    return len(entries)


def _worthwhile(prepared: Prepared, table: LatencyTable) -> list[Candidate]:
    """Return the choices that `compress_depth` would score by a table."""
    original = Pricing(prepared.original)
    least = LEAST_SAVING * original.kept_ms(original.kept, table.ms)
    return [c for c in prepared.candidates if prepared.pricing.saving_ms(c, table.ms) > least]
