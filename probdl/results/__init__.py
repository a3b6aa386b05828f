"""Fits, their diagnostics, comparison and cross-validation, and two-sample tests."""
