"""The rows of a dataset: read, checked, split, and rendered as a training reads them."""
