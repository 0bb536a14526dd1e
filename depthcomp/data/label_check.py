"""A check whether labels are in a network's own numbering of the classes."""

__all__ = ["foreign_labels"]

LEAST_ABOVE_CHANCE = 1.5  # times the odds of guessing right; with fewer right, the classes are numbered otherwise


def foreign_labels(accuracy: float, classes: int) -> str:
    """Return a note that labels are in another numbering if the accuracy is hardly above chance; else an empty text."""
    if accuracy * (classes - 1) > LEAST_ABOVE_CHANCE * (1 - accuracy):
        return ""
    return (
        f"the network gives {accuracy:.1%} of the images their label, hardly more than by chance, so the labels are "
        "not used; are they in the network's own numbering?"
    )
