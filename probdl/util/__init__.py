"""Utilities without knowledge of models: locks and global state, clock, progress, settings."""
