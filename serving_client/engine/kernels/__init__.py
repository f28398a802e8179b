"""Linear algebra of one layer, for CPUs and for GPUs."""
