"""The timing cache of TensorRT on disk: the next build on this GPU times only new tactics.

The file is as the library serialises it, so trtexec reads it too (`--timingCacheFile`). It is an aid and never a
condition: one that is broken, foreign or cannot be written is left aside with a warning. On tensorrt_rtx all of
this is a no-op, and no file is touched.
"""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from depthcomp_errors import DepthCompError
from depthcomp_files import locked, write_atomically

__all__ = ["TimingCache"]

_COMPLAINTS = ("INTERNAL_ERROR", "ERROR", "WARNING")


class TimingCache:
    """The timing cache of one build.

    Args:
        path: the file; None for none.
        trt: the library.
        log: what the builder logs to.
    """

    def __init__(self, path: Path | None, trt: Any, log: Any) -> None:
        self._path = path if trt.__name__ == "tensorrt" else None
        self._log = log
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give the builder what the file holds, or an empty cache.

        Warns:
            UserWarning: the file cannot be read, is broken, or is of another GPU or version.
        """
        if self._path is None:
            return
        self._cache = self._stored(self._path, config)
        if self._cache is None:
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def keep(self, config: Any) -> None:
        """Write what the file held and what the build has learnt, all of it or nothing.

        Warns:
            UserWarning: the file cannot be written.
        """
        if self._path is None:
            return
        try:
            with locked(self._path, "timing cache"):
                cache = config.get_timing_cache()
                meanwhile = _read(self._path)  # another process may have finished a build
                if meanwhile:
                    with suppress(Exception):  # what attach has warned of is replaced
                        cache.combine(config.create_timing_cache(meanwhile), False)
                data = bytes(cache.serialize())
                if data != meanwhile:
                    write_atomically(self._path, data, what="timing cache")
        except (OSError, DepthCompError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            _warn(f"the timing cache {self._path} is not kept ({reason}); the engine is not affected.")

    def _stored(self, path: Path, config: Any) -> Any:
        """Return the cache in the file, attached to `config`; None where there is none that can be used."""
        complaints = len(self._log.texts(*_COMPLAINTS))
        try:
            data = _read(path)
            if not data:
                return None
            cache = config.create_timing_cache(data)
            attached = cache is not None and config.set_timing_cache(cache, False)
            reason = "; ".join(self._log.texts(*_COMPLAINTS)[complaints:])
        except OSError as error:
            attached, reason = False, str(error.strerror)
        except Exception as error:  # the bindings raise whatever they make of a null pointer
            attached, reason = False, str(error)
        if attached and not reason:
            return cache
        reason = " ".join(reason.split()).rstrip(".")
        _warn(
            f"the timing cache {path} is ignored"
            f" ({reason or 'it is broken, or of another GPU or version'}); the build times its tactics anew and"
            " replaces it."
        )
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)
