"""Results of a compression: in memory, saved to a folder, loaded from it, and as a report."""
