"""Shards of the scores of an importance, for several processes or machines.

    score_shard(model, "0/4", "scores", table="desktop.json", data=loader)    # and 1/4, 2/4, 3/4
    compress_depth(model, "70%", table="desktop.json", data=loader, output_dir="scores")

The shards on one machine append to one journal; `cat` joins the journals of several machines, in any order. From the
command line: `depthcomp importance --shard 0/4`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from depthcomp.data.batches import Data
from depthcomp.data.example import ExampleInputs
from depthcomp.errors import DepthCompError, TableError
from depthcomp.importance.default import DEFAULT_IMPORTANCE
from depthcomp.importance.registry import PRESETS
from depthcomp.importance.scoring import ImportanceLike
from depthcomp.methods.candidates import PricedCandidates, operators_of, worthwhile
from depthcomp.methods.registry import METHODS
from depthcomp.preparation import Prepared
from depthcomp.progress import Progress, silent
from depthcomp.runs.task import CompressionTask
from depthcomp.sources.module_names import Modules
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
    kinds: Sequence[str] | None = None,
    exclude: Modules = (),
    importance: ImportanceLike = DEFAULT_IMPORTANCE,
    example_inputs: ExampleInputs | None = None,
    inputs: Sequence[str] | None = None,
    data: Data | None = None,
    val_data: Data | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> int:
    """Score a part of the choices into `output_dir`/importance.jsonl, and return the number of the part's entries.

    Entries in the journal are not scored again. `compress_depth` with equal arguments then scores the rest and
    continues, with the result that it would have alone. The result is equal to the bit where all processors are of one
    kind. All processes, `compress_depth` too, must use equally many threads (`torch.set_num_threads`); scores of other
    thread counts are ignored.

    Shards of "curvature" score the choices that are always scored: small kernels, merges and drops. `compress_depth`
    then fits the larger kernels that can enter the latency-loss frontier, as the scores of all shards decide which they
    are. A shard of "calibrated" scores all its choices on all judging images, as halving needs the scores of all
    shards. All its shards together need as many fits as one process, but up to four times as many scores and refits of
    consumers.

    Args:
        model: a trained CNN; it is not changed.
        shard: the part, INDEX/COUNT, counted from 0.
        output_dir: the folder to pass to `compress_depth` later.
        table: a complete latency table, which decides which choices are scored; nothing is measured.
        method: as for `compress_depth`; it decides which choices exist.
        kinds: as for `compress_depth`.
        exclude: as for `compress_depth`.
        importance: how losses are found; not a table of scores.
        example_inputs: as for `compress_depth`.
        inputs: as for `compress_depth`.
        data: calibration images, as for `compress_depth`.
        val_data: images to score on, as for `compress_depth`.
        seed: seed of everything random.
        progress: called as (what, done, total).

    Raises:
        TableError: the shard does not exist, the table lacks an operator, or a file cannot be read or written.
        DepthCompError: the method needs no losses, or the importance is a finished table.
        CaptureError, DataError: as for `compress_depth`.
    """
    task = CompressionTask.of(
        model, method, importance,
        kinds=kinds, exclude=exclude, example_inputs=example_inputs, data=data, val_data=val_data, seed=seed,
        inputs=inputs,
    )  # fmt: skip
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
            f"method (={task.method.name!r}) needs no losses, so shards have nothing to score; give one of {scored}"
        )
    if task.importance.unshareable:
        raise DepthCompError(
            f"importance (={importance!r}) {task.importance.unshareable}; give one of {', '.join(map(repr, PRESETS))}, "
            "or an importance object"
        )


def _worthwhile(prepared: Prepared, table: LatencyTable) -> PricedCandidates:
    """Return the choices that `compress_depth` would score with a table.

    Raises:
        TableError: the table lacks an operator.
    """
    needed = operators_of(prepared)
    missing = sorted(signature.key for signature in needed if signature not in table)
    if missing:
        raise TableError(
            f"the latency table lacks {len(missing)} of {len(needed)} operators, for example {missing[0]!r}; add them "
            "first with `depthcomp tables plan` and `depthcomp tables run`, as shards measure none"
        )
    return worthwhile(prepared, table)
