"""Shard of the scores of an importance: many processes or machines share the work.

    score_shard(model, "0/4", "scores", table="desktop.json", data=loader)    # and 1/4, 2/4, 3/4
    compress_depth(model, "70%", table="desktop.json", data=loader, output_dir="scores")

The shards of one machine append to one journal; the journals of several are put together by `cat`, in any order.
`depthcomp importance --shard 0/4` is the same from the command line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from depthcomp.data.batches import Data
from depthcomp.errors import DepthCompError, TableError
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scoring import ImportanceLike
from depthcomp.methods.candidates import PricedCandidates, operators_of, worthwhile
from depthcomp.methods.registry import METHODS
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from depthcomp.runs.task import CompressionTask
from depthcomp_files import require_writable_folder
from latency_tables import LatencyTable
from latency_tables.fleet.work import Shard

__all__ = ["score_shard"]


def score_shard(
    model: nn.Module,
    shard: str | Shard,
    output_dir: str | os.PathLike[str],
    *,
    table: LatencyTable | str | os.PathLike[str],
    method: str = "depthcomp",
    importance: ImportanceLike = "calibrated",
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    data: Data | None = None,
    val_data: Data | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> int:
    """Score a part of the choices into `output_dir`/importance.jsonl; return how many entries that are.

    Entries that stand there already are not scored again. `compress_depth` with the same arguments then scores what is
    left and goes on, with the result that it would have alone: to the bit where all processors are of one kind and all
    processes, that of `compress_depth` too, use as many threads (`torch.set_num_threads`). Other threads are
    another run, whose scores are not taken.

    A shard of "calibrated" scores all its choices on all images that judge, as it cannot tell which ones would be
    passed over in favour of other shards' choices: all shards together fit as much as one process does, and score, and
    refit what reads a change for that, up to four times as much.

    Args:
        model: a trained CNN; it is not changed.
        shard: which part, INDEX/COUNT, counted from 0.
        output_dir: the folder that `compress_depth` will be given.
        table: a complete latency table, which decides what is worth scoring; nothing is measured.
        method: as for `compress_depth`; it decides which choices there are.
        importance: how losses are found; not a table of scores.
        example_inputs: as for `compress_depth`, like the following.
        data: calibration images.
        val_data: images to score on.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        TableError: there is no such shard, the table lacks an operator, or a file cannot be read or written.
        DepthCompError: the method needs no losses, or the importance is a table of scores: nothing is left to share.
        CaptureError, DataError: as `compress_depth`.
    """
    task = CompressionTask.of(
        model, method, importance, example_inputs=example_inputs, data=data, val_data=val_data, seed=seed
    )
    part = shard if isinstance(shard, Shard) else Shard.parse(shard)
    _require_shareable(task, importance)
    known = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
    folder = require_writable_folder(output_dir)
    prepared = task.prepared(known.failures)
    context = task.scoring(prepared, _worthwhile(prepared, known), folder=folder, progress=progress)
    return task.importance.score_part(context, part)


def _require_shareable(task: CompressionTask, importance: ImportanceLike) -> None:
    if not task.method.scored:
        scored = ", ".join(name for name, method in METHODS.items() if method.scored)
        raise DepthCompError(
            f"method (={task.method.name!r}) needs no losses of choices, so there is nothing to share; give one of "
            f"{scored}"
        )
    if task.importance.unshareable:
        raise DepthCompError(
            f"importance (={importance!r}) {task.importance.unshareable}; give one of {', '.join(map(repr, PRESETS))}, "
            "or settings"
        )


def _worthwhile(prepared: Prepared, table: LatencyTable) -> PricedCandidates:
    """Return the choices that `compress_depth` would score by a table.

    Raises:
        TableError: the table lacks an operator.
    """
    needed = operators_of(prepared)
    missing = sorted(signature.key for signature in needed if signature not in table)
    if missing:
        raise TableError(
            f"the latency table lacks {len(missing)} of {len(needed)} operators, such as {missing[0]!r}, and shards "
            "measure none; add them first, with `depthcomp tables plan` and `depthcomp tables run`"
        )
    return worthwhile(prepared, table)
