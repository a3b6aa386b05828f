"""Point estimates."""
