"""Depth compression."""
