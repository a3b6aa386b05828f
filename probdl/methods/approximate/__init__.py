"""Normal approximations and weighted draws."""
