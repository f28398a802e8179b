"""Models of the serving fleet: clusters, their replicas, and grants of clusters to other projects."""
