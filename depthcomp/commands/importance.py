"""Command for shards of an importance: `depthcomp importance MODEL --table T --shard 0/4 --out DIR`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from depthcomp.commands.backend_help import IMPORTANCE_NAMES, METHOD_NAMES
from depthcomp.commands.error_reporting import reported_errors
from depthcomp.commands.exclude_option import Exclude
from depthcomp.commands.inputs_option import InputsOption
from depthcomp.commands.kinds_option import Kinds, listed
from depthcomp.importance.default import DEFAULT_IMPORTANCE

__all__ = ["importance"]


def importance(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model, as for compress; options of compress mean the same here.")
    ],
    table: Annotated[
        Path, typer.Option(help="A latency table with all operators, made by `tables plan` and `tables run`.")
    ],
    out: Annotated[Path, typer.Option(help="The --out folder for compress; scores are added to its importance.jsonl.")],
    shard: Annotated[str, typer.Option(help="The part to score, INDEX/COUNT, counted from 0.")] = "0/1",
    method: Annotated[
        str, typer.Option(help=f"The --method for compress, which decides which choices exist: {METHOD_NAMES}.")
    ] = "depthcomp",
    kinds: Kinds = None,
    exclude: Exclude = None,
    scored_by: Annotated[
        str, typer.Option("--importance", help=f"How the losses are found: {IMPORTANCE_NAMES}.")
    ] = DEFAULT_IMPORTANCE,
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file or a torch state dict.")] = None,
    data: Annotated[str | None, typer.Option(help="Images to fit on.")] = None,
    val_data: Annotated[str | None, typer.Option(help="Images to estimate the loss on.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(envvar="DEPTHCOMP_DATA_ROOT", help="Where torchvision keeps its data sets.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision download or unpack its data.")] = False,
    inputs: InputsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score a part of the choices that compress would score; nothing is measured, and a killed run resumes.

    Join the importance.jsonl files of several machines with `cat`, in one folder. `compress` takes the scores from it
    if `--out` is that folder, and model, table, data, method, kinds, importance, seed and number of threads
    (OMP_NUM_THREADS) are equal.
    """
    with reported_errors(kept=out):
        import torch

        from depthcomp.commands.console import Progress
        from depthcomp.commands.data_specs import calibration_data
        from depthcomp.commands.models import input_names, load_model
        from depthcomp.importance.context import JOURNAL
        from depthcomp.runs.shard import score_shard
        from latency_tables import LatencyTable
        from latency_tables.fleet.work import Shard

        part, known = Shard.parse(shard), LatencyTable.load(table)
        torch.manual_seed(seed)
        network, example = load_model(model, weights, listed(inputs))
        names = input_names(network, listed(inputs))
        images = partial(
            calibration_data, model=network, example=example, root=data_root, download=download, seed=seed,
            names=names,
        )  # fmt: skip
        with Progress() as progress, redirect_stdout(sys.stderr):
            count = score_shard(
                network,
                part,
                out,
                table=known,
                method=method,
                kinds=listed(kinds),
                exclude=exclude or (),
                importance=scored_by,
                example_inputs=None if example is None else example.held,
                inputs=names.names or None,
                data=images(data),
                val_data=images(val_data),
                seed=seed,
                progress=progress,
            )
        content = {"entries": count, "shard": shard, "file": str(out / JOURNAL)}
        text = f"{content['file']} has the {count} scores of shard {shard}"
        typer.echo(json.dumps(content, indent=2) if as_json else text)
