"""Label check: whether labels use a network's own numbering of the classes."""

__all__ = ["foreign_labels"]

LEAST_ABOVE_CHANCE = 1.5  # times the odds of guessing right; below it, the labels use another numbering


def foreign_labels(accuracy: float, classes: int) -> str:
    """Return a note that labels use another numbering, if the accuracy is hardly above chance; else an empty text."""
    if accuracy * (classes - 1) > LEAST_ABOVE_CHANCE * (1 - accuracy):
        return ""
    return (
        f"the network predicts the labels of {accuracy:.1%} of the images, no more than by chance, so the labels "
        "are not used; number them as the network's classes"
    )
