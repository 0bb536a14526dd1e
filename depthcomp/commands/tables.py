"""Commands for latency tables: `depthcomp tables plan`, `run`, `merge`, `check`, `show`, `import`, `estimate`.

A table can be planned on a machine without the device, measured in shards on several machines, and merged. stdout
carries only the result; progress and warnings go to stderr.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthcomp.commands.backend_help import BACKENDS, METHOD_NAMES, BackendHelp
from depthcomp.commands.error_reporting import reported_errors
from depthcomp.commands.kinds_option import Kinds, listed
from depthcomp.errors import TableError

if TYPE_CHECKING:
    from latency_tables import Environment, LatencyTable
    from latency_tables.fleet.work import Work
    from latency_tables.operators.roofline import Device

__all__ = ["tables"]

EXIT_UNSOUND = 1  # exit code of `check`, as for linters
_TRTEXEC_BACKEND = "tensorrt"  # tensorrt_rtx has another tool
_BACKEND = f"The backend that runs the operators: {BACKENDS}, or package.module:factory."

tables = typer.Typer(
    name="tables", help="Measure latency tables once for a device, and inspect them.", no_args_is_help=True
)
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="A latency table.")]


class Source(StrEnum):
    """Origins of files to import."""

    TRTEXEC = "trtexec"
    KIM23 = "kim23"


class Order(StrEnum):
    """Columns to sort a table by."""

    KEY = "key"
    MS = "ms"
    SPREAD = "spread"


@tables.command(cls=BackendHelp)
def plan(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="torchvision:NAME, timm:NAME or package.module:factory.")
    ],
    batch: Annotated[list[int], typer.Option(min=1, help="Images per inference; may be given several times.")] = [1],  # noqa: B006 (typer's way)
    method: Annotated[
        str, typer.Option(help=f"The --method for compress, which decides which operators are needed: {METHOD_NAMES}.")
    ] = "depthcomp",
    kinds: Kinds = None,
    out: Annotated[Path, typer.Option(help="The work file to write.")] = Path("work.json"),
    as_json: AsJson = False,
) -> None:
    """List the operators that compressions of these models need; nothing is measured and no device is used."""
    with reported_errors():
        from depthcomp_files import require_writable_file
        from latency_tables.fleet.work import Work

        require_writable_file(out, "work file", "choose another", error=TableError)
        work = Work({})
        for spec in models:
            for size in batch:
                planned = _planned(spec, size, method, listed(kinds))
                new = len(work.merged(planned)) - len(work)
                typer.echo(f"{spec}, batch {size}: {len(planned)} operators, {new} of them new", err=True)
                work = work.merged(planned)
        work.save(out)
        _print(as_json, {"operators": len(work), "file": str(out)}, f"wrote {out}, {len(work)} operators")


def _planned(spec: str, batch: int, method: str, kinds: list[str] | None) -> Work:
    from depthcomp.commands.models import input_names, load_model, require_example
    from depthcomp.data.inputs import Inputs
    from depthcomp.export.engine import with_batch
    from depthcomp.methods.registry import find_method
    from depthcomp.preparation import needed_operators
    from latency_tables.fleet.work import Origin, Work

    limits = find_method(method, kinds).limits

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")  # operators do not depend on them
        model, example = load_model(spec)
    inputs = Inputs.of(with_batch(require_example(spec, example).tensors, batch))
    given = input_names(model).given(inputs)
    needed = needed_operators(model, given, limits=limits)
    return Work({signature.key: (Origin(spec, batch, tuple(places)),) for signature, places in needed.items()})


@tables.command(cls=BackendHelp)
def run(
    work: Annotated[Path, typer.Argument(metavar="WORK", help="A file that `tables plan` wrote.")],
    table: Annotated[Path, typer.Option(help="The table to write; missing entries are measured and added.")],
    shard: Annotated[str, typer.Option(help="The part to measure, INDEX/COUNT, counted from 0.")] = "0/1",
    backend: Annotated[str, typer.Option(help=_BACKEND)] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads that one inference may use.")] = 1,
    chunk: Annotated[int, typer.Option(min=1, help="Operators that are timed side by side in one process.")] = 24,
    retry_failed: Annotated[bool, typer.Option(help="Try operators again that failed in earlier runs.")] = False,
    timeout_s: Annotated[float, typer.Option(min=1.0, help="Seconds after which a hanging build is stopped.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of measurements.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the operators of a work file that a table lacks; a killed run resumes."""
    with reported_errors():
        from depthcomp.commands.console import Progress
        from depthcomp.results.wording import where
        from latency_tables.fleet.run_work import run_work
        from latency_tables.fleet.work import Shard, Work

        signatures = Work.load(work).signatures(Shard.parse(shard))
        if not signatures:
            raise TableError(f"shard {shard} of {work} holds no operators; make fewer shards.")
        with Progress() as progress:
            progress("measuring operators", 0, len(signatures))  # a chunk takes a while
            found = run_work(
                signatures,
                table,
                backend=backend,
                threads=threads,
                chunk=chunk,
                seed=seed,
                retry_failed=retry_failed,
                timeout_s=timeout_s,
                progress=lambda done, total, key: progress("measuring operators", done, total),
            )
        for key, why in found.failed.items():
            warnings.warn(f"{key} failed: {why}", stacklevel=1)
        counts = {"new": len(found.measured), "failed": len(found.failed), "entries": len(found.table)}
        here = found.table.environment
        text = f"{table}: {counts['new']} new, {counts['failed']} failed, {counts['entries']} in all; {where(here)}"
        content = {**counts, "file": str(table), "environment": asdict(here), "failures": found.failed}
        _print(as_json, content, text)


@tables.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Tables of one environment.")],
    out: Annotated[Path, typer.Option(help="The table to write; an existing one is merged, too.")],
    as_json: AsJson = False,
) -> None:
    """Merge several tables into one; of two entries the steady one is kept, else the faster one."""
    with reported_errors():
        from depthcomp_files import locked
        from latency_tables import LatencyTable
        from latency_tables.tables.merge_tables import merge_tables
        from latency_tables.tables.table_file import require_writable_table

        require_writable_table(out)
        with locked(out, "latency table", error=TableError):
            several = dict.fromkeys([*paths, *([out] if out.exists() else [])])
            merged = merge_tables({str(path): LatencyTable.load(path) for path in several})
            merged.table.save(out)
        worst = max(merged.disagreements.values(), default=0.0)
        shared = len(merged.disagreements)
        text = f"wrote {out}, {len(merged.table)} entries, {len(merged.table.failures)} failed"
        if shared:
            text += f"; {shared} were in several tables, at most {100 * worst:.1f} % apart"
        if merged.calibrations > 1:
            warnings.warn(
                f"the tables' {merged.calibrations} calibrations on whole networks differ, so none is kept; the next "
                "compression with the table stores its own",
                stacklevel=1,
            )
        counts = {"entries": len(merged.table), "failed": len(merged.table.failures), "shared": shared}
        _print(as_json, {**counts, "largest_disagreement": worst, "file": str(out)}, text)


@tables.command()
def check(table: TableFile, as_json: AsJson = False) -> None:
    """Check how reliable a table is; the exit code is 1 if an entry failed or never became steady."""
    with reported_errors():
        from latency_tables import LatencyTable
        from latency_tables.tables.quality import quality_of

        quality = quality_of(LatencyTable.load(table))
        if as_json:
            typer.echo(json.dumps({"sound": quality.sound, **asdict(quality)}, indent=2, allow_nan=False))
        else:
            from depthcomp.commands.table_view import quality_text

            typer.echo(quality_text(quality))
    if not quality.sound:
        raise typer.Exit(EXIT_UNSOUND)


@tables.command()
def show(
    table: TableFile,
    contains: Annotated[list[str], typer.Option("--filter", help="Only keys with this text; repeatable.")] = [],  # noqa: B006 (typer's way)
    sort: Annotated[Order, typer.Option(help="Column to sort by; ms and spread with the largest first.")] = Order.KEY,
    limit: Annotated[int, typer.Option(min=0, help="Number of rows at most; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the entries of a table."""
    with reported_errors():
        from depthcomp.commands.table_view import selected, table_view
        from latency_tables import LatencyTable

        loaded = LatencyTable.load(table)
        entries = selected(loaded, contains, sort.value, limit)
        if as_json:
            rows = [{"key": key, **asdict(entry)} for key, entry in entries]
            fit = None if loaded.calibration is None else asdict(loaded.calibration)
            content = {"environment": asdict(loaded.environment), "entries": rows, "calibration": fit}
            typer.echo(json.dumps(content, indent=2))
        else:
            from rich.console import Console

            Console().print(table_view(loaded, entries))


@tables.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that another tool wrote.")],
    source: Annotated[Source, typer.Option("--from", help="The tool that wrote it.")],
    out: Annotated[Path, typer.Option("--table", help="The file to write; an existing table is extended.")],
    key: Annotated[str | None, typer.Option(help="trtexec: key of the timed operator.")] = None,
    device: Annotated[str | None, typer.Option(help="trtexec: name of the GPU.")] = None,
    backend_version: Annotated[str | None, typer.Option(help="trtexec: version of TensorRT.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="trtexec: precision of the engine; fp32 by default for a new table.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import measurements of another tool: from trtexec into a table, rows of Kim et al. into a list of their own."""
    with reported_errors():
        from latency_tables import LatencyTable
        from latency_tables.tables.table_file import require_writable_table
        from latency_tables.tables.table_update import update_table

        require_writable_table(out)
        named = {"device": device, "backend_version": backend_version, "precision": precision}
        given = {name: value for name, value in named.items() if value is not None}
        if source is Source.KIM23:
            _refuse_options({**given, **({} if key is None else {"key": key})})
            count = _by_position(file, out)
            text = f"wrote {out}, {count} latencies by position in one network; other networks cannot use them"
            _print(as_json, {"imported": count, "file": str(out)}, text)
            return
        known = LatencyTable.load(out) if out.exists() else None
        place = _new_place(given) if known is None else _same_place(known.environment, given, file, out)
        fresh = _from_trtexec(file, key, place)
        if known is not None:  # the table keeps the method of its own measurements, for example the removed overhead
            fresh = replace(fresh, method=known.method)
        table = update_table(out, fresh)
        text = f"wrote {out}, {len(fresh)} imported, {len(table)} entries in all"
        _print(as_json, {"imported": len(fresh), "entries": len(table), "file": str(out)}, text)


def _refuse_options(given: Mapping[str, Any]) -> None:
    """Refuse options that only a file of trtexec needs."""
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise TableError(
            f"{names} goes only with --from trtexec, as published rows are stored by position; leave it out."
        )


def _from_trtexec(file: Path, key: str | None, environment: Environment) -> LatencyTable:
    from latency_tables import OperatorSignature
    from latency_tables.measuring.import_trtexec import import_trtexec

    if key is None:
        raise TableError(f"{file} does not name the timed operator; give its key with --key.")
    return import_trtexec(file, OperatorSignature.parse(key), environment)


def _new_place(given: Mapping[str, Any]) -> Environment:
    """Return the environment where trtexec ran, from the command line."""
    from latency_tables import Environment

    if not {"device", "backend_version"} <= given.keys():
        raise TableError(
            "a file of trtexec does not name its device; give --device and --backend-version, or an existing table with"
            " --table."
        )
    return Environment.here(backend=_TRTEXEC_BACKEND, threads=1, **given)


def _same_place(known: Environment, given: Mapping[str, Any], file: Path, out: Path) -> Environment:
    """Return the environment of a table; refuse it where trtexec ran in another one."""
    from latency_tables.tables.environment import require_same_environment

    claimed = replace(known, backend=_TRTEXEC_BACKEND, **given)
    require_same_environment(claimed, known, what=str(file), place=f"in {out}", remedy="give another --table")
    return known


def _by_position(file: Path, out: Path) -> int:
    """Write the latencies of a CSV file of Kim et al. 2023 or of LayerMerge, and return their number."""
    from latency_tables import import_kim23
    from latency_tables.published.positions import write_positions

    published = import_kim23(file)
    write_positions(out, published)
    return len(published.ms)


@tables.command()
def estimate(
    work: Annotated[Path, typer.Argument(metavar="WORK", help="A file that `tables plan` wrote.")],
    device: Annotated[str, typer.Option(help="t4, l4, a100, h100, or any name with --tflops and --bandwidth.")],
    tflops: Annotated[float | None, typer.Option(help="Peak arithmetic of the device, TFLOP/s.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Peak memory bandwidth of the device, GB/s.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate lower bounds of operators' latencies on another device; nothing is measured."""
    with reported_errors():
        from latency_tables.fleet.work import Work
        from latency_tables.operators.roofline import estimate_roofline

        peaks = _device(device, tflops, bandwidth)
        found = estimate_roofline(Work.load(work).signatures(), peaks)
        if out is not None:
            found.save(out)
        if as_json:
            typer.echo(json.dumps({"kind": "roofline estimate", **asdict(found)}, indent=2, allow_nan=False))
        else:
            from rich.console import Console

            from depthcomp.commands.table_view import estimate_view

            Console().print(estimate_view(found))


def _device(name: str, tflops: float | None, bandwidth: float | None) -> Device:
    from latency_tables.operators.roofline import Device, find_device

    if tflops is None and bandwidth is None:
        return find_device(name)
    if tflops is None or bandwidth is None:
        raise TableError(f"device {name!r} needs both --tflops and --bandwidth, or neither.")
    return Device(name=name, tflops=tflops, gbytes_per_s=bandwidth, source="given on the command line")


@tables.command()
def schema() -> None:
    """Print the JSON schema of the table format."""
    from latency_tables.tables.table_file import published_schema

    typer.echo(published_schema(), nl=False)


def _print(as_json: bool, content: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(content, indent=2, allow_nan=False) if as_json else text)
