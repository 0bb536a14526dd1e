"""Name of the attribute that carries what an ONNX file called its inputs and outputs."""

__all__ = ["NAMES"]

NAMES = "onnx_names"
"""The attribute of a network read from a file: {"inputs": [...], "outputs": [...], "dynamic_batch": bool}."""
