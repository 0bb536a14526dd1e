"""Latency tables: operator signature in, milliseconds out.

The room promises:

- a latency belongs to an `OperatorSignature`, never to a position in a network, so what is repeated is
  measured once and a `LatencyTable` serves every network that shares shapes;
- a table belongs to one `Environment` and refuses to answer for another unless told to;
- `measure` times operators side by side in interleaved rounds (`time_interleaved`), removes what a call
  costs by itself, flags what stays unstable, and resumes from its journal after it was killed;
- `import_kim23` reads the tables that the method's authors published, which go by position in one network;
- `fit_affine` turns sums of entries into latencies of whole networks, which the sums alone miss.

Importing it loads no backend's library, and PyTorch is known only where a backend takes modules or a GPU is used.
"""

from latency_tables.backends import as_backend, create_backend
from latency_tables.backends.protocol import AnyBackend, Backend, ModuleBackend, Progress, Runner
from latency_tables.measuring.measure import measure
from latency_tables.measuring.timing import Timing, time_interleaved
from latency_tables.operators.signature import OperatorSignature
from latency_tables.published.kim23 import NoisyRow, PublishedLatencies, import_kim23
from latency_tables.tables.calibration import Calibration, fit_affine
from latency_tables.tables.entry import Entry, Method
from latency_tables.tables.environment import Environment
from latency_tables.tables.table import LatencyTable

__all__ = [
    "AnyBackend",
    "Backend",
    "Calibration",
    "Entry",
    "Environment",
    "LatencyTable",
    "Method",
    "ModuleBackend",
    "NoisyRow",
    "OperatorSignature",
    "Progress",
    "PublishedLatencies",
    "Runner",
    "Timing",
    "as_backend",
    "create_backend",
    "fit_affine",
    "import_kim23",
    "measure",
    "time_interleaved",
]
