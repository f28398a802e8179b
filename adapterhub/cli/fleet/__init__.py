"""Commands and the step of a declaration about clusters and replicas, and the limits of tokens."""
