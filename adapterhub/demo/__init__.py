"""The demo: one command that shows the product from a dataset to a rollback."""
