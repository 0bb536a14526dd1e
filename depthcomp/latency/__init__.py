"""Latencies of operators and of whole networks: prices for the solver, the table's files, predictions."""
