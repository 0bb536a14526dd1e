"""Report of a result, one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import fx

from depthcomp.importance.registry import preset_name
from depthcomp.importance.table import NO_METHOD
from depthcomp.results.frontier_plot import frontier_svg
from depthcomp.results.wording import deed, line_residual, milliseconds, percent, place, tuning, verdict, whole_latency
from fx_passes.kinds import kind_of
from latency_tables.measuring.timing import DRIFT_LIMIT

if TYPE_CHECKING:
    from depthcomp.importance.estimate_check import EstimateCheck
    from depthcomp.preparation import Refusal
    from depthcomp.results.effort import Effort
    from depthcomp.results.findings import Findings, SpanRecord
    from depthcomp.training.finetune import FinetuneRecord
    from latency_tables import Timing

__all__ = ["write_report"]

TEMPLATE = "report.html.jinja"
NOT_KNOWN = "—"


def write_report(result: Findings, directory: Path) -> None:
    """Write `report.html` and `frontier.svg` to an existing folder, each whole or not at all.

    The page holds its style sheet and picture, so it needs no other file and no internet.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    from depthcomp_files import write_atomically

    svg = frontier_svg(result)
    page = _page(result, svg, directory.resolve().name)
    write_atomically(directory / "report.html", page.encode())
    write_atomically(directory / "frontier.svg", svg.encode())


def _page(result: Findings, svg: str, folder: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("depthcomp.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        result=result,
        headline=_headline(result),
        comparison=_comparison(result),
        picture=Markup(svg[svg.index("<svg") :]),  # matplotlib has escaped its texts
        plans=len(result.frontier),
        spans=[_span_row(record) for record in _in_plan_order(result)],
        totals=_totals(result.spans),
        legend=sorted(set(map(kind_of, result.plan)), key=lambda kind: kind.precedence),
        free=_free(result),
        tunings=_tunings(result),
        refusals=_grouped(result.refusals),
        rounds=_rounds(result),
        drifted=max(result.original_timing.drifted, result.measured_timing.drifted),
        drift_percent=f"{100 * DRIFT_LIMIT:.0f} %",
        importance=_importance(result),
        effort="" if result.effort is None else _effort(result.effort),
        sizes=["x".join(map(str, tensor.shape)) for tensor in result.example_inputs],
        load=f"network = depthcomp.load({folder!r})",
    )


def _headline(result: Findings) -> str:
    now, before = milliseconds(result.measured_ms), milliseconds(result.original_ms)
    times = f"{result.speedup:.2f}x as fast: {now} instead of {before}"
    return f"{times}, measured side by side on {place(result)}"


class _Line(NamedTuple):
    """A row of the table of before and after."""

    what: str
    original: str
    compressed: str


def _comparison(result: Findings) -> list[_Line]:
    unchanged = [point.predicted_ms for point in result.frontier if not point.plan and not result.free_merges]
    parameters = f"{_parameters(result.model):,}"
    return [
        _Line("Latency, measured", _timed(result.original_timing), _timed(result.measured_timing)),
        _Line(
            "Latency, predicted",
            _foretold(unchanged[0], result.original_ms) if unchanged else NOT_KNOWN,
            _foretold(result.predicted_ms, result.measured_ms),
        ),
        *_residual(result),
        *([_Line(*_capitalised(whole_latency(result.part)))] if result.part is not None else []),
        _Line("Speed-up, round by round", NOT_KNOWN, _speedups(result)),
        _Line(f"Budget ({result.budget})", milliseconds(result.budget_ms), verdict(result)),
        _Line("Convolutions on the longest path", str(result.original_depth), str(result.depth)),
        _Line("Parameters", NOT_KNOWN, parameters),
        _Line(_loss_of(result), "0", f"{result.loss:.4g}"),
    ]


def _capitalised(texts: tuple[str, str, str]) -> tuple[str, str, str]:
    what, *others = texts
    return what[0].upper() + what[1:], others[0], others[1]


def _loss_of(result: Findings) -> str:
    before = "" if result.finetuned is None else ", before fine-tuning"
    what = f" ({result.judged_by})" if result.judged_by else ""
    return f"Loss against the original{what} on images left out of the fits{before}"


def _residual(result: Findings) -> list[_Line]:
    fitted = result.table.calibration is not None
    return [_Line("Residual of the predicting line", NOT_KNOWN, line_residual(result))] if fitted else []


def _timed(timing: Timing) -> str:
    return f"{milliseconds(timing.median_ms)} (spread {100 * timing.spread:.1f} %, n = {timing.n})"


def _foretold(predicted_ms: float, measured_ms: float) -> str:
    return f"{milliseconds(predicted_ms)} (measured: {percent(measured_ms / predicted_ms - 1)})"


def _speedups(result: Findings) -> str:
    """Return the range of the speed-ups in single rounds, each of which times both networks."""
    before, after = result.original_timing.rounds_ms, result.measured_timing.rounds_ms
    if len(before) != len(after):
        return NOT_KNOWN
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return f"{min(ratios):.2f}x to {max(ratios):.2f}x"


def _rounds(result: Findings) -> str:
    counts = {len(timing.rounds_ms) for timing in (result.original_timing, result.measured_timing)}
    return " and ".join(map(str, sorted(counts)))


def _importance(result: Findings) -> str:
    """Return how the losses of choices were found, and how well they rank plans."""
    table = result.importance
    if table.method == NO_METHOD:
        return "None: the method needs no losses of choices"
    choices = "1 choice" if len(table.losses) == 1 else f"{len(table.losses)} choices"
    found = f"{preset_name(table)}, {choices} scored in {table.seconds:.0f} s"
    check = "" if table.check is None else f" {_checked(table.check)}"
    return f"{found}.{check} It is an estimate, summed over spans; {_agreement(result)}"


def _effort(effort: Effort) -> str:
    """Return how many choices, fits, plans and networks were tried."""
    return (
        f"{effort.choices} choices save time; {effort.scored} of them were scored, with {effort.fits} fits, and the "
        f"losses of {effort.true_losses} are true ones. {effort.plans_compared} plans were compared, "
        f"{effort.plans_verified} were refitted to be compared, and {effort.networks_measured} networks were measured"
    )


def _checked(check: EstimateCheck) -> str:
    """Return how well estimated losses of single choices agree with true ones."""
    rho = "unknown" if check.rank_correlation is None else f"{check.rank_correlation:.2f}"
    return (
        f"On {check.choices} choices the estimates are {check.median_ratio:.2f} times the true losses in the median "
        f"(four fifths lie between {check.low_ratio:.2f} and {check.high_ratio:.2f}), and their rank correlation with "
        f"them is {rho}."
    )


def _agreement(result: Findings) -> str:
    if result.rank_correlation is None:
        return "its rank correlation is not known, as fewer than three whole plans were tried or all scores were equal"
    rho = f"{result.rank_correlation:.2f}"
    return f"its rank correlation (Spearman) with the losses of the whole plans that were tried is {rho}"


def _tunings(result: Findings) -> list[str]:
    """Return the outcome of each fine-tuning, in order."""
    last = () if result.finetuned is None else (result.finetuned,)
    records = (*result.tuned_before, *last)
    return [_tuning(record, "Then fine-tuned" if place else "Fine-tuned") for place, record in enumerate(records)]


def _tuning(record: FinetuneRecord, what: str) -> str:
    metric = (
        f", {record.metric} {record.metric_before:.4g} to {record.metric_after:.4g}" if record.metric != "loss" else ""
    )
    losses = f"from loss {record.loss_before:.4g} to {record.loss_after:.4g}{metric}"
    return f"{what} {losses} on the validation data ({tuning(record)})."


def _parameters(gm: fx.GraphModule) -> int:
    return sum(parameter.numel() for parameter in gm.parameters())


def _free(result: Findings) -> str:
    """Return how many spans were merged for free, or an empty text for none."""
    count = len(result.free_merges)
    if not count:
        return ""
    spans = "1 span was merged" if count == 1 else f"{count} spans were merged"
    return f"First, {spans} for free: each computes a single convolution, so only the latency changed."


@dataclass(frozen=True, slots=True)
class _SpanRow:
    """A row of the table of spans, with numbers as text."""

    modules: str
    deed: str
    details: str
    convolutions: int
    kept: str
    new: str
    saved: str
    loss: str


def _in_plan_order(result: Findings) -> list[SpanRecord]:
    places = {choice: index for index, choice in enumerate(result.plan)}
    return sorted(result.spans, key=lambda record: places.get(record.choice, len(places)))


def _span_row(record: SpanRecord) -> _SpanRow:
    numbers = _numbers(record.kept_ms, record.new_ms, record.loss)
    return _SpanRow(record.modules, deed(record.choice), record.details, record.convolutions, *numbers)


def _totals(records: Iterable[SpanRecord]) -> _SpanRow:
    found = list(records)
    kept_ms, new_ms, loss = (
        math.fsum(getattr(record, name) for record in found) for name in ("kept_ms", "new_ms", "loss")
    )
    convolutions = sum(record.convolutions for record in found)
    return _SpanRow("", "", "", convolutions, *_numbers(kept_ms, new_ms, loss))


def _numbers(kept_ms: float, new_ms: float, loss: float) -> tuple[str, str, str, str]:
    return f"{kept_ms:.3f}", f"{new_ms:.3f}", f"{kept_ms - new_ms:.3f}", f"{loss:.4g}"


@dataclass(frozen=True, slots=True)
class _RefusalGroup:
    """Spans refused for one reason."""

    reason: str
    spans: tuple[str, ...]


def _grouped(refusals: Iterable[Refusal]) -> list[_RefusalGroup]:
    """Return the refusals by reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for refusal in refusals:
        inside = f" (at {refusal.at})" if refusal.at not in ("", refusal.modules) else ""
        groups.setdefault(refusal.why, []).append(f"{refusal.modules}{inside}")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [_RefusalGroup(reason, tuple(spans)) for reason, spans in ordered]
