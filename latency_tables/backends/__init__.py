"""Backends: libraries that run models on a device. Importing this package loads none of these libraries."""

from latency_tables.backends.own_backend import find_backend
from latency_tables.backends.registry import BACKEND_NAMES, as_backend, create_backend

__all__ = ["BACKEND_NAMES", "as_backend", "create_backend", "find_backend"]
