"""The errors that depthcomp raises, one class per outcome; `DepthCompError` is the base of all."""

from depthcomp_errors import (
    ArtifactError,
    BackendUnavailableError,
    BudgetError,
    BudgetInfeasibleError,
    CaptureError,
    DataError,
    DepthCompError,
    MissingPackageError,
    PlanError,
    ProblemError,
    TableError,
    TableMismatchError,
)

__all__ = [
    "ArtifactError",
    "BackendUnavailableError",
    "BudgetError",
    "BudgetInfeasibleError",
    "CaptureError",
    "DataError",
    "DepthCompError",
    "MissingPackageError",
    "PlanError",
    "ProblemError",
    "TableError",
    "TableMismatchError",
]
