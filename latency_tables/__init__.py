"""Latency tables: operator signature in, milliseconds out.

Its promises:

- a latency belongs to an `OperatorSignature`, never to a position in a network: repeated operators are
  measured once, and a `LatencyTable` serves every network that shares shapes;
- a table belongs to one `Environment` and refuses to answer for another unless told to;
- `measure` times operators side by side in interleaved rounds (`time_interleaved`), removes the cost of an
  empty call, flags unstable entries, and resumes from its journal after a kill;
- `import_kim23` reads the tables that Kim et al. published, whose keys are positions in one network;
- `fit_affine` predicts latencies of whole networks from sums of entries, as the sums alone are biased.

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
