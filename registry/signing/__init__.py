"""Signing of versions with the installation's key. Pure."""
