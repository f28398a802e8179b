"""The registry's HTML pages."""
