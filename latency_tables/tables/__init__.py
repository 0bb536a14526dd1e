"""Latency tables: their entries, files and environments, and what is done with whole tables."""
