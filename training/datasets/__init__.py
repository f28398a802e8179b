"""Rows of a dataset: reading, checking, splitting, and rendering as a training reads them."""
