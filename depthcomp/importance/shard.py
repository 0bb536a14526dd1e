"""A part of the scores of an importance: many processes or machines share the work.

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
from depthcomp.importance.calibrated import score_part
from depthcomp.importance.config import CalibratedImportance
from depthcomp.importance.scoring import Importance, fit_memory, journal_of, most_images, parse_importance
from depthcomp.importance.table import ImportanceTable
from depthcomp.importance.trained import entries_of, finetuned
from depthcomp.offer import operators_of, worthwhile
from depthcomp.preparation import Prepared, measurable, prepare
from depthcomp.pricing import Candidate
from depthcomp.progress import Progress, silent
from depthcomp_files import require_writable_folder as require_writable
from latency_tables import LatencyTable
from latency_tables.fleet.work import Shard

__all__ = ["score_shard"]


def score_shard(
    model: nn.Module,
    shard: str | Shard,
    output_dir: str | os.PathLike[str],
    *,
    table: LatencyTable | str | os.PathLike[str],
    importance: Importance = "calibrated",
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
        importance: "calibrated", "kim23", "layermerge", or settings of either kind.
        example_inputs: as for `compress_depth`, like the following.
        data: calibration images.
        val_data: images to score on.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        TableError: there is no such shard, the table lacks an operator, or a file cannot be read or written.
        DepthCompError: the importance is a table of scores, of which nothing is left to share.
        CaptureError, DataError: as `compress_depth`.
    """
    method, part = parse_importance(importance), shard if isinstance(shard, Shard) else Shard.parse(shard)
    if isinstance(method, ImportanceTable):
        raise DepthCompError(
            f"importance (={importance!r}) is a table of scores, of which nothing is left to share; give 'calibrated', "
            "'kim23', 'layermerge' or settings"
        )
    known = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
    folder = require_writable(output_dir)
    prepared = measurable(
        prepare(model, example_inputs, data, val_data, seed, most=most_images(method)), known.failures
    )  # fmt: skip
    candidates, _ = fit_memory(prepared, method).fitting(_worthwhile(prepared, known))
    refit_kept = data is not None
    journal = journal_of(prepared, candidates, method, folder, seed, refit_kept=refit_kept)
    if isinstance(method, CalibratedImportance):
        memory = fit_memory(prepared, method)
        return score_part(
            prepared.network, candidates, prepared.calibration, journal, part,
            refit_kept=refit_kept, seed=seed, progress=progress, memory=memory,
        )  # fmt: skip
    entries = sorted(entries_of(prepared.captured, candidates, method))[part.index :: part.count]
    finetuned(
        prepared.captured, candidates, prepared.calibration, method, journal,
        entries=entries, seed=seed, progress=progress,
    )  # fmt: skip
    return len(entries)


def _worthwhile(prepared: Prepared, table: LatencyTable) -> list[Candidate]:
    """Return the choices that `compress_depth` would score by a table."""
    needed = operators_of(prepared)
    missing = sorted(signature.key for signature in needed if signature not in table)
    if missing:
        raise TableError(
            f"the latency table lacks {len(missing)} of {len(needed)} operators, such as {missing[0]!r}, and shards "
            "measure none; add them first, with `depthcomp tables plan` and `depthcomp tables run`"
        )
    return worthwhile(prepared, table).candidates
