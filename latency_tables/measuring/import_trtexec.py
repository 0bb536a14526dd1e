"""Import of the latencies that `trtexec --exportTimes` wrote, as entries of a table."""

from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from depthcomp_errors import TableError
from depthcomp_files import first_fault
from latency_tables.measuring.timing import STABLE_SPREAD, Timing
from latency_tables.operators.signature import OperatorSignature
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment
from latency_tables.tables.table import LatencyTable

__all__ = ["import_trtexec"]

LEAST_SAMPLES = 10  # trtexec runs at least ten inferences unless told otherwise


class _Inference(BaseModel):
    """One inference; trtexec writes more about it than is read here."""

    model_config = ConfigDict(strict=True)

    compute_ms: float = Field(alias="computeMs", gt=0, allow_inf_nan=False)


_TIMES = TypeAdapter(list[_Inference])


def import_trtexec(path: Path, signature: OperatorSignature, environment: Environment) -> LatencyTable:
    """Return a table with one operator, timed by trtexec as an engine of its own.

    The latency is the median of the GPU's compute times (`computeMs`), the spread their coefficient of variation from
    the median absolute deviation. Copies from and to the host are no part of it, so there is no overhead to remove.

    Args:
        path: what `trtexec --exportTimes=FILE` wrote.
        signature: the operator that the engine consists of.
        environment: where trtexec ran; the file does not tell.

    Raises:
        TableError: the file cannot be read, or holds no times or too few.
    """
    times = _times(path)
    if len(times) < LEAST_SAMPLES:
        raise TableError(
            f"{path} holds {len(times)} inferences, and a latency needs at least {LEAST_SAMPLES}; run trtexec with"
            f" --iterations={LEAST_SAMPLES} or more."
        )
    spread = Timing(tuple(times), len(times)).spread
    entry = Entry(ms=median(times), spread=spread, n=len(times), unstable=spread > STABLE_SPREAD)
    return LatencyTable(environment, _method(len(times)), {signature.key: entry})


def _times(path: Path) -> list[float]:
    try:
        return [inference.compute_ms for inference in _TIMES.validate_json(path.read_bytes())]
    except OSError as error:
        raise TableError(f"cannot read the times {path}: {error.strerror}; check the path.") from error
    except ValidationError as error:
        raise TableError(
            f"{path} is not what trtexec --exportTimes writes: {first_fault(error)}; a list of objects with computeMs"
            " is needed."
        ) from error


def _method(samples: int) -> Method:
    return Method(
        estimator="median of trtexec's computeMs",
        rounds=1,
        samples_per_round=samples,
        sample_ms=0.0,
        warmup_ms=0.0,
        seed=0,
        overhead_ms=0.0,
    )
