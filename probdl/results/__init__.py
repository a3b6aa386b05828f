"""What inference returns, and how it is judged."""
