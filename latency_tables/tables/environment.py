"""Environments of measurements, and whether two of them may share a table."""

import hashlib
import platform
import re
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from depthcomp_errors import TableMismatchError

__all__ = ["Environment", "cpu_name", "require_same_environment"]

KEY_FIELDS = ("backend", "backend_version", "device", "threads", "precision")
SOFT_FIELDS = ("os", "python", "machine", "driver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The place of a measurement.

    Latencies are comparable only where all key fields (`backend` to `precision`) agree; the soft fields are
    there to explain small differences. The kernels of a GPU come from the library and from CUDA, so their versions are
    key; the driver only runs them.

    Attributes:
        backend: name of the backend.
        backend_version: version of the library behind it, and on a GPU that of CUDA.
        device: processor that ran the operators.
        threads: threads that one inference may use.
        precision: arithmetic of the operators.
        os: operating system and its release.
        python: version of the interpreter.
        machine: instruction set of the machine.
        driver: version of the GPU's driver; None on a CPU, and where nothing tells it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    backend: str
    backend_version: str
    device: str
    threads: int
    precision: str
    os: str
    python: str
    machine: str
    driver: str | None = None

    def fingerprint(self) -> str:
        """Return eight hexadecimal digits that are the same where latencies are comparable, and only there."""
        decisive = repr([getattr(self, name) for name in KEY_FIELDS])
        return hashlib.sha256(decisive.encode()).hexdigest()[:8]

    @classmethod
    def here(
        cls,
        *,
        backend: str,
        backend_version: str,
        device: str,
        threads: int,
        precision: str = "fp32",
        driver: str | None = None,
    ) -> "Environment":
        """Return the environment of a backend on this machine, the soft fields filled in."""
        return cls(
            backend=backend,
            backend_version=backend_version,
            device=device,
            threads=threads,
            precision=precision,
            os=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            machine=platform.machine(),
            driver=driver,
        )


def require_same_environment(
    found: Environment, here: Environment, *, what: str, remedy: str, place: str = "here"
) -> None:
    """Refuse measurements that were made elsewhere.

    Args:
        found: where the measurements come from.
        here: where they are to be used.
        what: what holds the measurements, for the message.
        remedy: what the user can do, for the message.
        place: what the message calls the place of use.

    Raises:
        TableMismatchError: a key field differs; the message names the first.

    Warns:
        UserWarning: a soft field differs, and both places tell it.
    """
    for name in KEY_FIELDS:
        if getattr(found, name) != getattr(here, name):
            raise TableMismatchError(
                f"{what} was measured with {name} {getattr(found, name)!r},"
                f" but {place} {name} is {getattr(here, name)!r}; {remedy}."
            )
    for name in SOFT_FIELDS:
        if getattr(found, name) != getattr(here, name) and None not in (getattr(found, name), getattr(here, name)):
            warnings.warn(
                f"{what} was measured with {name} {getattr(found, name)!r}, but {place} {name} is"
                f" {getattr(here, name)!r}; latencies may differ a little.",
                stacklevel=3,
            )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name.

    Virtual machines hide the model behind names such as "AMD EPYC", and Linux on ARM tells no name at all, so the
    numbers of the model are added where the system tells them; of cores that differ, those of all.
    """
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    found: dict[str, set[str]] = {}
    for name, value in re.findall(rf"^(model name|{'|'.join(_NUMBERS)})\s*:\s*(.+?)\s*$", text, re.MULTILINE):
        found.setdefault(name, set()).add(value)
    fields = {name: "/".join(sorted(values)) for name, values in found.items()}
    numbers = [f"{label} {fields[name]}" for name, label in _NUMBERS.items() if name in fields]
    cpu = fields.get("model name") or _apple_name() or platform.processor() or platform.machine()
    return f"{cpu} ({', '.join(numbers)})" if numbers else cpu


def _apple_name() -> str | None:
    """Return the processor's name on macOS, where Python tells the instruction set alone; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


_NUMBERS = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}
