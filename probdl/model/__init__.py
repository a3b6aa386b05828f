"""A Pyro program: its sites, its log density, its predictions."""
