"""Errors of depthcomp, one class for each outcome, raised by all packages.

Each message is one sentence or two: what was given, what is needed, what to do.
"""

__all__ = [
    "ArtifactError",
    "BackendUnavailableError",
    "BudgetError",
    "BudgetInfeasibleError",
    "CaptureError",
    "DataError",
    "DepthCompError",
    "EngineError",
    "MissingPackageError",
    "PlanError",
    "ProblemError",
    "TableError",
    "TableMismatchError",
    "TrainingError",
]


class DepthCompError(Exception):
    """Base of every error that depthcomp raises on purpose."""


class BudgetError(DepthCompError, ValueError):
    """The budget is malformed."""


class BudgetInfeasibleError(DepthCompError, ValueError):
    """No plan meets the budget.

    Attributes:
        best_ms: the smallest latency in ms that a plan can reach.
    """

    def __init__(self, message: str, *, best_ms: float) -> None:
        super().__init__(message)
        self.best_ms = best_ms


class CaptureError(DepthCompError, ValueError):
    """The model cannot be traced to a graph, or its weights or example inputs are unusable."""


class PlanError(DepthCompError, ValueError):
    """A plan does not fit the graph that it is applied to."""


class DataError(DepthCompError, ValueError):
    """Calibration or validation data are empty or do not fit the model."""


class ProblemError(DepthCompError, ValueError):
    """A solver problem is malformed: gaps, non-finite or negative costs, duplicate keys."""


class TableError(DepthCompError, ValueError):
    """A latency table cannot be read, written or completed."""


class TableMismatchError(TableError):
    """A latency table was measured in another environment."""


class BackendUnavailableError(DepthCompError, RuntimeError):
    """A measuring backend cannot run here."""


class MissingPackageError(DepthCompError, ImportError):
    """A requested feature needs an optional package that is missing."""


class EngineError(DepthCompError, ValueError):
    """A network or an ONNX model cannot become the requested engine."""


class TrainingError(DepthCompError, RuntimeError):
    """Fine-tuning cannot go on, or what it made cannot be merged.

    Attributes:
        result: what `compress_depth` had compressed, or fine-tuned, by then; None elsewhere.
    """

    def __init__(self, message: str, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class ArtifactError(DepthCompError, OSError):
    """A file or folder of results cannot be written or read."""
