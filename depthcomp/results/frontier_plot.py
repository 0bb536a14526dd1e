"""Plot of the frontier: latency and loss of each plan, with the result, the original and the budget."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING

from depthcomp.results.wording import milliseconds, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from depthcomp.results.findings import Findings

__all__ = ["frontier_svg"]

SIZE_INCHES = (5.0, 4.3)  # small enough for 10 point text to stay legible on a phone
TITLE_COLUMNS = 50  # characters of the title's font that fit the width
MOST_DOTS = 200  # more dots run into each other and only make the file large
CROWDED = 30  # a linear axis up to this many times the chosen plan's loss would hide the plan at the bottom
LINEAR_SHARE = 1e-3  # the logarithmic axis is linear from about this share of the largest loss down to 0

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes differ as well.
FRONTIER, CHOSEN, MEASURED, ORIGINAL, BUDGET = "#0072B2", "#E69F00", "#D55E00", "#595959", "#000000"

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "depthcomp",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.facecolor": "white",
}


def frontier_svg(result: Findings) -> str:
    """Return the frontier of a compression as an SVG document; equal results give equal text.

    The horizontal axis is the predicted latency of the network in ms, the vertical axis its importance. Marks show the
    chosen plan, its measured latency, the original and the budget. pyplot and its global figures are not touched.
    """
    import matplotlib.style

    with matplotlib.style.context(_SETTINGS, after_reset=True):
        figure = draw_frontier(result)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


def draw_frontier(result: Findings) -> Figure:
    """Return the plot as a figure without a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    _draw_plans(axes, result)
    _draw_references(axes, result)
    _draw_result(axes, result)
    _label(axes, result)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_plans(axes: Axes, result: Findings) -> None:
    """Draw the frontier as steps: a budget between two plans gets the faster one."""
    ms = [point.predicted_ms for point in result.frontier]
    losses = [point.loss for point in result.frontier]
    marker = "o" if len(ms) <= MOST_DOTS else "None"
    axes.plot(
        ms, losses, marker=marker, drawstyle="steps-post", color=FRONTIER, markersize=4,
        label=f"frontier, predicted ({len(ms)} plans)",
    )  # fmt: skip


def _draw_references(axes: Axes, result: Findings) -> None:
    axes.axvline(result.original_ms, color=ORIGINAL, linewidth=1.2)
    axes.plot(
        [result.original_ms], [0.0], "s", color=ORIGINAL, markersize=7, zorder=4,
        label=f"original, measured {milliseconds(result.original_ms)}",
    )  # fmt: skip
    axes.axvline(
        result.budget_ms, color=BUDGET, linewidth=1.2, linestyle=(0, (4, 3)),
        label=f"budget {milliseconds(result.budget_ms)}",
    )  # fmt: skip


def _draw_result(axes: Axes, result: Findings) -> None:
    """Draw the chosen plan's predicted and measured latency, joined by a line."""
    loss = _chosen_loss(result)
    axes.plot([result.predicted_ms, result.measured_ms], [loss, loss], color=MEASURED, linewidth=1.2, zorder=4)
    axes.plot(
        [result.predicted_ms], [loss], "o", color=CHOSEN, markeredgecolor="black", markersize=10, zorder=5,
        label=f"chosen plan, predicted {milliseconds(result.predicted_ms)}",
    )  # fmt: skip
    axes.plot(
        [result.measured_ms], [loss], "D", color=MEASURED, markeredgecolor="black", markersize=7, zorder=6,
        label=f"chosen plan, measured {milliseconds(result.measured_ms)}",
    )  # fmt: skip


def _label(axes: Axes, result: Findings) -> None:
    title = place(result).replace(" thread", "\N{NO-BREAK SPACE}thread")
    axes.figure.suptitle("\n".join(textwrap.wrap(title, TITLE_COLUMNS)), fontsize=10)
    axes.set_xlabel("latency of the whole network (ms)")
    axes.set_ylabel("importance (sum of losses)")
    largest = max((abs(point.loss) for point in result.frontier), default=0.0)
    if math.isfinite(largest) and largest > CROWDED * abs(_chosen_loss(result)) > 0:
        axes.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(largest * LINEAR_SHARE)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("importance (sum of losses, log scale)")


def _chosen_loss(result: Findings) -> float:
    return math.fsum(record.loss for record in result.spans)
