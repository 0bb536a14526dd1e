"""Latencies of operators and of whole networks: the solver's costs, the files of tables, predictions."""
