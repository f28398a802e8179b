"""Calls to replicas: choice, circuit breaker, cold start and shadow traffic."""
