"""Code generation: from a graph of tensor operations to C."""
