"""Latency tables, their quality and roofline estimates, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from depthcomp.results.wording import milliseconds
from latency_tables import Calibration, Entry, LatencyTable
from latency_tables.operators.roofline import RooflineEstimate
from latency_tables.tables.quality import Inversion, Quality

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["estimate_view", "fit_text", "quality_text", "selected", "table_view"]

LISTED = 10  # findings of each sort that are listed; the rest is counted


def selected(table: LatencyTable, contains: Sequence[str], sort: str, limit: int) -> list[tuple[str, Entry]]:
    """Return the entries whose keys contain all texts, sorted by "key", "ms" or "spread"; `limit` 0 is for all."""
    found = [(key, table.entries[key]) for key in sorted(table.entries) if all(text in key for text in contains)]
    if sort != "key":
        found.sort(key=lambda pair: getattr(pair[1], sort), reverse=True)
    return found[:limit] if limit else found


def table_view(table: LatencyTable, entries: Sequence[tuple[str, Entry]]) -> Table:
    """Return entries of a table as rows, with the environment as title."""
    from rich.table import Table
    from rich.text import Text

    here = table.environment
    place = f"{here.backend} {here.backend_version}, {here.device}, threads={here.threads}, {here.precision}"
    caption = f"{len(entries)} of {len(table)} entries, {len(table.failures)} failed\n{fit_text(table.calibration)}"
    view = Table(title=Text(place), caption=Text(caption))
    view.add_column("operator", overflow="fold")
    for name in ("latency", "spread", "n"):
        view.add_column(name, justify="right", no_wrap=True)
    for key, entry in entries:
        spread = f"{100 * entry.spread:.1f} %{' unstable' if entry.unstable else ''}"
        view.add_row(Text(key), milliseconds(entry.ms), spread, str(entry.n))
    return view


def estimate_view(estimate: RooflineEstimate) -> Table:
    """Return an estimate as rows; title and caption say that it is one."""
    from rich.table import Table
    from rich.text import Text

    device = estimate.device
    peaks = f"{device.tflops:g} TFLOP/s, {device.gbytes_per_s:g} GB/s; {device.source}"
    view = Table(title=Text(f"roofline ESTIMATE, not measured: {device.name}"), caption=Text(f"estimate from {peaks}"))
    view.add_column("operator", overflow="fold")
    view.add_column("estimated, at least", justify="right", no_wrap=True)
    for key, bound_ms in estimate.bounds_ms.items():
        view.add_row(Text(key), f"{1e3 * bound_ms:.2f} us")
    return view


def quality_text(quality: Quality) -> str:
    """Return a quality report as lines of text."""
    return "\n".join(_quality_lines(quality))


def _quality_lines(quality: Quality) -> Iterator[str]:
    yield f"{quality.n} entries, call overhead {1e3 * quality.overhead_ms:.1f} us (removed)"
    for line in quality.lines:
        yield (
            f"{line.kind}: {line.n} entries, {line.ms_per_giga:.3g} ms per 1e9 multiply-adds,"
            f" intercept {1e3 * line.intercept_ms:+.1f} us"
        )
    yield from _finding("slower than a larger one", list(map(_inversion, quality.inversions)), quality.pairs)
    unstable = sorted(quality.unstable.items(), key=lambda item: -item[1])
    yield from _finding("unstable", [f"{key}, spread {100 * spread:.1f} %" for key, spread in unstable], quality.n)
    yield f"measured partly while the machine changed its speed: {len(quality.drifted)} of {quality.n}"
    yield from _finding("not above the call overhead", list(quality.free), quality.n)
    failures = [f"{key}: {why}" for key, why in quality.failures.items()]
    yield from _finding("failed", failures, quality.n + len(failures))
    yield fit_text(quality.calibration)


def _inversion(found: Inversion) -> str:
    return f"{found.smaller} ({found.smaller_ms:.4f} ms) > {found.larger} ({found.larger_ms:.4f} ms)"


def _finding(what: str, cases: list[str], of: int) -> Iterator[str]:
    yield f"{what}: {len(cases)} of {of}"
    yield from (f"  {case}" for case in cases[:LISTED])
    if len(cases) > LISTED:
        yield f"  and {len(cases) - LISTED} more"


def fit_text(fit: Calibration | None) -> str:
    """Return the line from sums to whole networks in words."""
    if fit is None:
        return "no calibration on whole networks is stored"
    return (
        f"whole networks, by the last compression: {fit.intercept_ms:+.3f} ms + {fit.slope:.3f} x sum, residual"
        f" {fit.residual_ms:.3f} ms over {fit.n} networks"
    )
