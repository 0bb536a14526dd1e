"""Operators of networks: their signatures, sizes and estimated latencies, and the models that run one alone."""
