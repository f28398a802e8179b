"""Replicas as the router calls them: choice, circuit breaker, cold start, shadow traffic."""
