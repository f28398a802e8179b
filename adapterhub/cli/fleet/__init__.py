"""Commands and steps of a declaration about clusters, replicas, and the limits of projects and tokens."""
