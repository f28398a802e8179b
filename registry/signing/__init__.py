"""The installation's signature of a version. Pure."""
