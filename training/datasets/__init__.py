"""Datasets: reading, checking and splitting of their rows, and rendering as a training reads them."""
