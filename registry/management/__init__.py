"""Management commands of the application `registry`."""
