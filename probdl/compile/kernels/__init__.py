"""C loops around a compiled density: Adam and the random walk."""
