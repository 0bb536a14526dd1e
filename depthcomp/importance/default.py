"""Name of the default importance; importing it loads nothing else."""

__all__ = ["DEFAULT_IMPORTANCE"]

DEFAULT_IMPORTANCE = "curvature"
