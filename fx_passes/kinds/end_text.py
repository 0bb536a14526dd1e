"""What follows a new convolution, in words."""

from __future__ import annotations

from fx_passes.choice import End

__all__ = ["described_end", "end_sign"]

_SIGNS: dict[End, str] = {"original": "", "inserted": " + activation", "none": " - activation"}
_WORDS: dict[End, str] = {"original": "", "inserted": ", activation inserted", "none": ", activation removed"}


def end_sign(end: End) -> str:
    """Return how the text of a choice tells its end."""
    return _SIGNS[end]


def described_end(end: End) -> str:
    """Return how reports tell an end."""
    return _WORDS[end]
