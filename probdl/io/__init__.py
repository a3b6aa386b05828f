"""Fits on disk, and as ArviZ's containers."""
