"""What the package needs of the machine and of Python: isolation, clock, progress, memory."""
