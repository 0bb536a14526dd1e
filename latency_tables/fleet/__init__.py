"""Lists of operators to measure, shared by several machines or processes."""
