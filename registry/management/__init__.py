"""Commands of the application `registry`."""
