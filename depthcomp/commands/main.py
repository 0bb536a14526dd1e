"""Command line: `depthcomp compress MODEL --budget 70%`, `depthcomp export DIR`, `depthcomp bench DIR...`.

stdout carries only the result; progress, warnings and errors go to stderr. The exit code is 0 for success, 2 for errors
that the user can correct, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthcomp.budget import Budget
from depthcomp.commands.backend_help import BACKENDS, IMPORTANCE_NAMES, METHOD_NAMES, BackendHelp
from depthcomp.commands.error_reporting import reported_errors
from depthcomp.commands.exclude_option import Exclude
from depthcomp.commands.importance import importance as score
from depthcomp.commands.inputs_option import InputsOption
from depthcomp.commands.kinds_option import Kinds, listed
from depthcomp.commands.printed_result import print_result, stamps, written_since
from depthcomp.commands.tables import tables
from depthcomp.importance.default import DEFAULT_IMPORTANCE

if TYPE_CHECKING:
    from depthcomp.commands.bench import Comparison
    from depthcomp.training.config import FinetuneConfig

__all__ = ["app", "main"]

DATA = (
    "a folder of images, folder:PATH with a folder for each class, torchvision:FashionMNIST:train, "
    "package.module:function, which returns a DataLoader or Dataset, or a file of arrays (.npy, .npz, .pt, "
    ".safetensors): inputs as the network takes them, or arrays named after its inputs, and label"
)
DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="DEPTHCOMP_DATA_ROOT", help="Where torchvision keeps its data sets; by default ./data."),
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download or unpack its data.")]

app = typer.Typer(
    help="Compress the depth of any trained CNN to a latency budget measured on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(tables)
app.command("importance", cls=BackendHelp)(score)


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="depthcomp")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"depthcomp {version('depthcomp')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command(cls=BackendHelp)
def compress(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, an .onnx file, or package.module:factory, a function without arguments "
            "that returns the model. input_size, mean and std come from the model's pretrained_cfg, if it has one.",
        ),
    ],
    budget: Annotated[str, typer.Option(help="70% of the measured original, 1.8ms, or 1.4x as fast.")],
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file or a torch state dict.")] = None,
    module: Annotated[
        str | None,
        typer.Option(
            help="The path of a part of the model, such as backbone, to compress in its place. --out saves the part; "
            "model.set_submodule('backbone', depthcomp.load('DIR')) puts it back into the model."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"Images to fit on: {DATA}.")] = None,
    val_data: Annotated[
        str | None, typer.Option(help="Images to estimate the loss on; by default each third of --data in turn.")
    ] = None,
    inputs: InputsOption = None,
    data_root: DataRoot = None,
    download: Download = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images for fine-tuning.")] = 0,
    backend: Annotated[str, typer.Option(help=f"The backend that runs the network: {BACKENDS}.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads that one inference may use.")] = 1,
    table: Annotated[
        Path | None,
        typer.Option(help="A latency table of this machine; missing entries are measured and added."),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"How the plan is chosen: {METHOD_NAMES}. All but the default are for comparison.")
    ] = "depthcomp",
    kinds: Kinds = None,
    exclude: Exclude = None,
    importance: Annotated[
        str,
        typer.Option(
            help=f"How the losses of choices are found: {IMPORTANCE_NAMES}, or the path of an importance.json. The "
            "default uses closed-form fits; those named after papers train each choice."
        ),
    ] = DEFAULT_IMPORTANCE,
    finetune_epochs: Annotated[
        int | None, typer.Option(help="Fine-tune the result on --data for this many epochs.")
    ] = None,
    finetune_config: Annotated[
        Path | None, typer.Option("--finetune", help="Fine-tune with this file, written by FinetuneConfig.to_json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to save all results to.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a trained CNN shallower until it meets a latency budget when measured."""
    with reported_errors(kept=out):
        wanted = Budget.parse(budget)  # before torch is loaded, which takes seconds

        import torch

        from depthcomp import compress_depth
        from depthcomp.commands.console import Progress
        from depthcomp.commands.data_specs import calibration_data
        from depthcomp.commands.models import input_names, load_model
        from depthcomp.compress import NOT_SAVED
        from depthcomp.latency.table_store import TableStore
        from depthcomp.methods.registry import find_method
        from latency_tables import create_backend

        find_method(method, listed(kinds))
        tuning = _tuning(finetune_config, finetune_epochs, workers, seed)
        runtime = create_backend(backend, threads=threads)
        TableStore.open(table, runtime.environment())  # refuse an unusable table before the model is loaded
        before = stamps(out, table)
        torch.manual_seed(seed)
        network, example = load_model(model, weights, listed(inputs))
        names = input_names(network, listed(inputs))
        images = partial(
            calibration_data, model=network, example=example,
            repeated=tuning is not None, root=data_root, download=download, seed=seed,
            names=names,
        )  # fmt: skip
        with Progress() as progress, redirect_stdout(sys.stderr):
            result = compress_depth(
                network,
                wanted,
                module=module,
                example_inputs=None if example is None else example.held,
                data=images(data),
                val_data=images(val_data),
                inputs=listed(inputs) if module else names.names or None,
                backend=runtime,
                table=table,
                method=method,
                kinds=listed(kinds),
                exclude=exclude or (),
                importance=importance,
                finetune=tuning,
                output_dir=out,
                seed=seed,
                progress=progress,
            )
        print_result(result, written_since(before, out, table), as_json)
        if any(note.startswith(NOT_SAVED) for note in result.warnings):
            raise typer.Exit(1)


@app.command()
def finetune(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --out or result.save wrote.")],
    data: Annotated[str, typer.Option(help=f"Images to train on: {DATA}. Labels are used if there are any.")],
    val_data: Annotated[
        str | None, typer.Option(help="Images to choose the best epoch on; by default a tenth of --data.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A file that FinetuneConfig.to_json wrote.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; 10 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch; 64 by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest learning rate; 0.001 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; 0 by default.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The model to learn from, as for compress; by default the original.")
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option(help="The teacher's weights.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images; 0 by default.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    augment: Annotated[bool, typer.Option(help="Crop and mirror training images at random.")] = True,
    mean: Annotated[
        str,
        typer.Option(help="Mean of pixels (0 to 1) by channel, for example 0.286; by default as saved in DIR."),
    ] = "",
    std: Annotated[str, typer.Option(help="Standard deviation by channel, as for --mean.")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder to write to; by default DIR itself.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a compressed network on data, with the original as teacher; an interrupted run resumes."""
    with reported_errors(kept=directory):
        from depthcomp.commands.console import Progress
        from depthcomp.commands.finetune import TuningRequest, configured, run, statistics

        request = TuningRequest(
            directory=directory,
            data=data,
            val_data=val_data,
            config=configured(
                config, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, workers=workers
            ),
            teacher=teacher,
            teacher_weights=teacher_weights,
            data_root=data_root,
            download=download,
            augment=augment,
            statistics=statistics(mean, std),
            out=out,
        )
        before = stamps(out or directory, None)
        with Progress() as progress, redirect_stdout(sys.stderr):
            result = run(request, progress)
        if result is None:
            return  # only the first of several processes prints
        print_result(result, written_since(before, out or directory, None), as_json)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --out or result.save wrote.")],
    to: Annotated[str, typer.Option(help="onnx, tensorrt (for the GPU here) or tensorrt-rtx (needs no GPU).")],
    sm: Annotated[
        str, typer.Option(help="With tensorrt-rtx, the GPUs to build for: 86,89. By default all from Ampere on.")
    ] = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    batch: Annotated[
        str, typer.Option(help="A batch size, or smallest,typical,largest: 1,8,32. By default the saved one.")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="A folder of images, for the ranges of int8.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default in DIR.")] = None,
    tf32: Annotated[bool, typer.Option(help="Let fp32 convolutions round to TF32, as TensorRT does.")] = True,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="With tensorrt, a file that speeds up builds on this GPU; it is read and extended."),
    ] = None,
) -> None:
    """Write a compressed network as ONNX, or build a TensorRT engine of it."""
    from depthcomp.commands.export import Request, run

    with reported_errors():
        for line in run(Request.parse(directory, to, sm, precision, batch, data, out, tf32, timing_cache)):
            typer.echo(line)


@app.command(cls=BackendHelp)
def bench(
    artefacts: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="Folders that --out or result.save wrote, .onnx files, engines with their .json beside them, or "
            "models like timm:NAME. NAME=DIR gives one a name.",
        ),
    ],
    backend: Annotated[
        str, typer.Option(help=f"The backend that runs them: {BACKENDS}, or package.module:factory.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads that one inference may use.")] = 1,
    rounds: Annotated[int, typer.Option(help="Turns of each; all get more if one is not steady.")] = 7,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per inference; by default as saved.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The one to compare the others with; by default the first.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of measurements.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time artefacts side by side, in turns, on one backend."""
    with reported_errors():
        from depthcomp.commands.bench import bench as compared
        from depthcomp.commands.console import Progress
        from latency_tables.backends.own_backend import find_backend

        with Progress() as progress, redirect_stdout(sys.stderr):
            runtime = find_backend(backend, threads=threads)
            found = compared(
                artefacts, runtime, baseline=baseline, batch=batch, rounds=rounds, seed=seed, progress=progress
            )
        if as_json:
            typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
        else:
            _print_comparison(found)


def _print_comparison(found: Comparison) -> None:
    from rich.console import Console

    from depthcomp.commands.bench_view import comparison_view, notes

    Console().print(comparison_view(found))
    for note in notes(found):
        typer.echo(note)


def _tuning(file: Path | None, epochs: int | None, workers: int, seed: int) -> FinetuneConfig | None:
    """Return the configuration of the fine-tuning in this call; None for no fine-tuning."""
    from depthcomp.commands.finetune import configured

    if file is None and epochs is None:
        return None
    return configured(file, epochs=epochs, workers=workers or None, seed=seed if file is None else None)
