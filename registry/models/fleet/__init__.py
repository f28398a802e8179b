"""Models of what serves: clusters, their replicas, and grants of clusters to other projects."""
