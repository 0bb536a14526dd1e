"""Words for the end of a choice: what follows its new convolution."""

from __future__ import annotations

from fx_passes.choice import End

__all__ = ["described_end", "end_sign"]

_SIGNS: dict[End, str] = {"original": "", "inserted": " + activation", "none": " - activation"}
_WORDS: dict[End, str] = {"original": "", "inserted": ", activation inserted", "none": ", activation removed"}


def end_sign(end: End) -> str:
    """Return the words for an end in the text of a choice; empty for the original end."""
    return _SIGNS[end]


def described_end(end: End) -> str:
    """Return the words for an end in reports; empty for the original end."""
    return _WORDS[end]
