"""What replicas hold and routers know: the reconciler, its calls to replicas, and the routing table."""
