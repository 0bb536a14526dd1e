"""Log of a training: one JSON object a line, and optionally files for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from depthcomp.errors import MissingPackageError
from depthcomp_files import write_atomically

__all__ = ["TrainingLog", "require_tensorboard"]

FILE = "log.jsonl"


def require_tensorboard() -> ModuleType:
    """Return the module that writes files for TensorBoard.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        from torch.utils import tensorboard
    except ImportError as error:
        raise MissingPackageError(
            "tensorboard=True needs the package tensorboard; run `pip install tensorboard`"
        ) from error
    return tensorboard


class TrainingLog:
    """A log with lines for updates and epochs.

    Args:
        folder: folder of the log; None for no log.
        update: number of finished updates; lines of an interrupted run beyond them are removed, as they come again.
        tensorboard: whether to write files for TensorBoard, too.
    """

    def __init__(self, folder: Path | None, update: int, *, tensorboard: bool) -> None:
        self._path = None if folder is None else folder / FILE
        if self._path is not None and self._path.exists():
            self._cut(self._path, update)
        board = folder is not None and tensorboard
        self._board: Any = require_tensorboard().SummaryWriter(folder, purge_step=update + 1) if board else None

    def write(self, kind: str, update: int, **values: Any) -> None:
        """Write a line: its kind, the number of finished updates, and values."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "update": update, **values}) + "\n")
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, update)

    def close(self) -> None:
        """Write what is still buffered."""
        if self._board is not None:
            self._board.close()

    def _cut(self, path: Path, update: int) -> None:
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_before(line, update)]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def _is_before(line: str, update: int) -> bool:
    try:
        return int(json.loads(line)["update"]) <= update
    except (ValueError, KeyError, TypeError):
        return False  # half a line, from a run that was killed
