"""Tracing: from a program to a graph of tensor operations."""
