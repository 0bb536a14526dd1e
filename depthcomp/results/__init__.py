"""What a compression found: in memory, on disk as a folder that can be loaded again, and as a page to read."""
