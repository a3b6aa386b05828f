"""Saved fits, and conversion to ArviZ containers."""
