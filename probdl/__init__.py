"""One call from a Pyro program to its posterior."""
