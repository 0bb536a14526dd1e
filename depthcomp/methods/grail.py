"""Method of GRAIL, Tang et al., CPAL 2026 (arXiv 2602.23795), with channels chosen by magnitude.

Layers lose the same share of their inner channels, those made by the smallest weights. The weights of the layers behind
come from ridge regression on the calibration images.

Deviations: spans whose channels would save less than 0.5 % of the latency stay whole. The regression restores what the
layers behind compute, not what they read; it goes front to back, unseen images choose its strength, and it also uses
the means and variances that batch norms store. Widths are those of the kind `narrow`. Between two of them, some spans,
evenly spread, are narrower than the others, so that plans meet any budget closely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from depthcomp.fitting.magnitude_orders import MagnitudeOrders
from depthcomp.latency.pricing import Candidate
from depthcomp.methods.baselines import Materials, Rewrites, disjoint, in_order
from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS
from fx_passes import CapturedNetwork, Narrow

__all__ = ["equal_shares"]

GOLDEN = (5**0.5 - 1) / 2  # its multiples, less their whole parts, spread evenly
SHARES = 8  # spans keep eighths of their channels, or the nearest width that they have


def equal_shares(materials: Materials) -> Iterator[Rewrites]:
    """Yield plans in which all spans keep about the same share of their channels, or some of them the next one."""
    spans = _spans(materials)
    for share in range(SHARES, 0, -1):
        for narrower in range(len(spans) + 1):
            chosen = (
                _nearest(options, share - (place < narrower), materials.network) for place, options in enumerate(spans)
            )
            yield [candidate for candidate in chosen if candidate is not None]


def _spans(materials: Materials) -> list[list[Candidate]]:
    """Return the choices of spans that do not overlap, those with most tensors preferred, the spans evenly mixed."""
    widest = sorted(materials.candidates, key=lambda candidate: -len(_widths(candidate)))
    places = in_order(disjoint(widest), materials.network)
    mixed = sorted(range(len(places)), key=lambda place: place * GOLDEN % 1)
    return [[c for c in materials.candidates if c.span == places[place].span] for place in mixed]


def _nearest(options: Sequence[Candidate], share: int, network: CapturedNetwork) -> Candidate | None:
    """Return the choice that keeps about a share of the channels; None where keeping all is nearest."""
    wanted = share / SHARES
    return min([None, *options], key=lambda candidate: abs(_share_kept(candidate, network) - wanted))


def _share_kept(candidate: Candidate | None, network: CapturedNetwork) -> float:
    """Return the share of the channels that a choice keeps, in the mean over its tensors."""
    if candidate is None:
        return 1.0
    shares = [count / network.channels.width(tensor) for tensor, count in _widths(candidate)]
    return sum(shares) / len(shares)


def _widths(candidate: Candidate) -> tuple[tuple[str, int], ...]:
    return candidate.choice.widths if isinstance(candidate.choice, Narrow) else ()


register(
    Method(
        "grail",
        "equal shares of channels removed by magnitude, layers behind refitted",
        replace(DEFAULT_LIMITS, kinds=("narrow",)),
        draw=equal_shares,
        scored=False,
        fits=True,
        orders=MagnitudeOrders,
    )
)
