"""HTML pages of the registry."""
