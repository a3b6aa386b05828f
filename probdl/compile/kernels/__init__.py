"""C loops that call a compiled density: Adam and random-walk Metropolis."""
