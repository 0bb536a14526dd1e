"""First line of another library's error, for use in a message."""

__all__ = ["first_line"]


def first_line(error: BaseException, *, empty: str = "") -> str:
    r"""Return the first line of an error's message.

    Args:
        error: the error.
        empty: what to return where the message is empty; by default the name of the error's class.

    Example:
        >>> first_line(ValueError("shapes differ\\nin a long traceback"))
        'shapes differ'
        >>> first_line(ValueError())
        'ValueError'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else empty or type(error).__name__
