"""Measurements of operators: timing, the journal of what is finished, and a process for each chunk."""
