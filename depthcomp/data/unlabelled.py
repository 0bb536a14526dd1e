"""Images and pixels of which nobody knows the class: their label is one that is passed over."""

from __future__ import annotations

from torch import Tensor

__all__ = ["IGNORED", "labelled_alone"]

IGNORED = -100  # by the default of torch's cross-entropy


def labelled_alone(images: Tensor, labels: Tensor | None, argument: str) -> tuple[Tensor, Tensor | None, str]:
    """Return the images that have a label, their labels (n,), and what the user should know.

    Where no image has one, all of them are returned, without labels.

    Args:
        images: (n, c, h, w).
        labels: (n,); None for none.
        argument: what the user calls the data, for the sentence.
    """
    if labels is None or not bool((labels == IGNORED).any()):
        return images, labels, ""
    known = labels != IGNORED
    if not bool(known.any()):
        return images, None, ""
    note = (
        f"{int((~known).sum())} of {len(labels)} images of {argument} have the label {IGNORED} and are left out of the "
        "fits and their judging; give images without any labels to use them all"
    )
    return images[known.to(images.device)], labels[known], note
