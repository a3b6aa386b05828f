"""The C compiler, the cache of compiled code, and loaded libraries."""
