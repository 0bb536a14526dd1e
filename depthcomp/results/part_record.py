"""Record of the part that was compressed in place of a whole network, and of the whole's latency."""

from __future__ import annotations

from dataclasses import dataclass

from latency_tables import Timing

__all__ = ["PartRecord"]


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The part that a result is about; all latencies of the result but these are those of the part.

    Attributes:
        module: the part's path in the whole.
        original_timing: timing of the whole original; None where the whole cannot be measured.
        measured_timing: timing of the whole with the compressed part, measured side by side with it.
        unmeasured: why the whole cannot be measured; empty where it is.
        judged_alone: why the outputs of the part judged plans, and not those of the whole; empty where the whole's did.
    """

    module: str
    original_timing: Timing | None = None
    measured_timing: Timing | None = None
    unmeasured: str = ""
    judged_alone: str = ""
