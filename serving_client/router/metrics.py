"""What Prometheus may ask: requests and latency of each alias, version and arm."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving_client.router.outcomes import Outcome

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LABELS = ("alias", "version", "arm")


class Metrics:
    """One registry a process; times in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "adapterhub_requests",
            "Requests; without a version those refused before.",
            (*LABELS, "status"),
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "adapterhub_first_byte_seconds", "Until the first byte.", LABELS, buckets=BUCKETS, registry=self.registry
        )
        self.total = Histogram(
            "adapterhub_request_seconds", "Until the last byte.", LABELS, buckets=BUCKETS, registry=self.registry
        )
        self.generation = Gauge(
            "adapterhub_table_generation", "Generation of the routing table.", registry=self.registry
        )
        self.dropped = Gauge("adapterhub_outcomes_dropped", "Reports that were lost.", registry=self.registry)

    def answered(self, outcome: Outcome) -> None:
        """Count an answer, be it an error, of a request that was routed."""
        labels = (outcome.alias or "", outcome.version, outcome.arm)
        self.requests.labels(*labels, str(outcome.status)).inc()
        self.total.labels(*labels).observe(outcome.total_ms / 1000)
        if outcome.ttft_ms is not None:
            self.first_byte.labels(*labels).observe(outcome.ttft_ms / 1000)

    def refused(self, status: int) -> None:
        """Count a request that was refused before it had a version."""
        self.requests.labels("", "", "none", str(status)).inc()
