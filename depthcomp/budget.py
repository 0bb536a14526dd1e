"""Latency budget: a share of the original's latency, milliseconds, or a speed-up."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from depthcomp.errors import BudgetError

__all__ = ["Budget"]

Unit = Literal["%", "ms", "x"]
_SPELLING = '"70%" of the measured original, "1.8ms" (milliseconds) or "1.4x" (speed-up)'
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%|ms|x)\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on the latency of the compressed network.

    Attributes:
        value: a positive number.
        unit: "%" of the measured original, "ms", or "x" times as fast as the original.

    Raises:
        BudgetError: the value or the unit is out of range.

    Example:
        >>> Budget.parse("1.25x").target_ms(original_ms=10.0)
        8.0
    """

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in ("%", "ms", "x"):
            raise BudgetError(f"budget unit (={self.unit!r}) must be one of '%', 'ms', 'x'")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise BudgetError(f"budget value (={self.value!r}) must be a number; write {_SPELLING}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(f"budget {self} must be a positive finite number; write {_SPELLING}")
        if self.unit == "%" and self.value >= 100:
            raise BudgetError(f"budget {self} asks for no compression; give less than 100%")
        if self.unit == "x" and self.value <= 1:
            raise BudgetError(f"budget {self} asks for no speed-up; give more than 1x")

    @classmethod
    def parse(cls, budget: str | Budget) -> Budget:
        """Return the budget in a string.

        Raises:
            BudgetError: the string has no known unit; the message gives the right spellings.
        """
        if isinstance(budget, Budget):
            return budget
        match = _PATTERN.fullmatch(budget) if isinstance(budget, str) else None
        if match is None:
            raise BudgetError(f"budget (={budget!r}) has no known unit; write {_SPELLING}")
        return cls(float(match[1]), match[2])  # type: ignore[arg-type]

    def target_ms(self, original_ms: float) -> float:
        """Return the budget in ms for a network that takes `original_ms`."""
        if self.unit == "ms":
            return self.value
        return original_ms * self.value / 100 if self.unit == "%" else original_ms / self.value

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"
