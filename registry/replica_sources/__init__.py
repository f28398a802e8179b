"""Sources of a cluster's replicas: DNS and Kubernetes; no Django."""
