"""Images and pixels of unknown class, marked with a label that is ignored."""

from __future__ import annotations

from torch import Tensor

from depthcomp.data.inputs import Inputs

__all__ = ["IGNORED", "labelled_alone"]

IGNORED = -100  # the default of torch's cross-entropy


def labelled_alone(images: Inputs, labels: Tensor | None, argument: str) -> tuple[Inputs, Tensor | None, str]:
    """Return the images with a label, their labels (n,), and a note for the user.

    Where no image has a label, all of them are returned, without labels.

    Args:
        images: n images.
        labels: labels (n,); None for none.
        argument: the user's name for the data, for the note.
    """
    if labels is None or not bool((labels == IGNORED).any()):
        return images, labels, ""
    known = labels != IGNORED
    if not bool(known.any()):
        return images, None, ""
    note = (
        f"{int((~known).sum())} of {len(labels)} images of {argument} have the label {IGNORED} and are left out; give "
        "the images without labels to use them all"
    )
    return images[known.to(images.real.device)], labels[known], note
