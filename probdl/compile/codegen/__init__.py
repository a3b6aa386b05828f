"""From a graph to C, one file for each family of operations."""
