"""Compute kernels of one layer, for CPUs and for GPUs."""
