"""Serving of versions: the reconciler, its calls to replicas, and the routing table for routers."""
