"""Passes that bring a raw trace to the canonical form, one pass a file."""
