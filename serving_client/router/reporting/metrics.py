"""Prometheus metrics of the router: requests and latency of each project, alias, version and arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving_client.reports import Outcome

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
# The status of reports for a client that left before its answer was whole, and of the answer that nobody reads.
CLIENT_CLOSED = 499
LABELS = ("project", "alias", "version", "arm")


class Metrics:
    """Metrics of one process in a registry of its own; times in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "adapterhub_requests",
            "Requests; without a version: those refused before one was chosen, without a project: before the token.",
            (*LABELS, "status"),
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "adapterhub_first_byte_seconds",
            "Time until the first byte.",
            LABELS,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.total = Histogram(
            "adapterhub_request_seconds", "Time until the last byte.", LABELS, buckets=BUCKETS, registry=self.registry
        )
        self.inter_token = Histogram(
            "adapterhub_inter_token_seconds",
            "Mean time between two tokens of a stream.",
            LABELS,
            buckets=TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "adapterhub_tokens", "Tokens that engines read and wrote.", (*LABELS, "kind"), registry=self.registry
        )
        self.estimated = Counter(
            "adapterhub_tokens_estimated",
            "Answers whose engine sent no counts of tokens: the router estimated them.",
            LABELS,
            registry=self.registry,
        )
        self.cache = Counter("adapterhub_cache", "Answers by X-Cache.", (*LABELS, "result"), registry=self.registry)
        self.closed = Counter(
            "adapterhub_client_closed",
            "Requests whose client left before the answer; in no other count.",
            LABELS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "adapterhub_in_flight", "Requests in progress on a replica.", ("replica",), registry=self.registry
        )
        self.open = Gauge(
            "adapterhub_replicas_failing", "Replicas that are tried last because they failed.", registry=self.registry
        )
        self.waiting = Gauge(
            "adapterhub_waiting_for_load", "Requests that wait for a cold version.", registry=self.registry
        )
        self.load_wait = Histogram(
            "adapterhub_load_wait_seconds",
            "Time that requests for a cold version waited until it was loaded, or until the deadline.",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.generation = Gauge(
            "adapterhub_table_generation", "Generation of the routing table.", registry=self.registry
        )
        self.age = Gauge(
            "adapterhub_table_age_seconds",
            "Since the control plane published the routing table.",
            registry=self.registry,
        )
        self.dropped = Gauge("adapterhub_outcomes_dropped", "Reports that were lost.", registry=self.registry)

    def nameless(self) -> CollectorRegistry:
        """Return a registry of the metrics that name no alias, version or replica."""
        registry = CollectorRegistry()
        for metric in (self.open, self.waiting, self.load_wait, self.generation, self.age, self.dropped):
            registry.register(metric)
        return registry

    def answered(self, outcome: Outcome) -> None:
        """Count an answer, errors included, with its times and tokens.

        How long a client stayed says nothing of the version, so those that left are counted apart.
        """
        labels = (outcome.project, outcome.alias or "", outcome.version, outcome.arm)
        if outcome.status == CLIENT_CLOSED:
            self.closed.labels(*labels).inc()
            return
        self.requests.labels(*labels, str(outcome.status)).inc()
        self.total.labels(*labels).observe(outcome.total_ms / 1000)
        if outcome.ttft_ms is not None:
            self.first_byte.labels(*labels).observe(outcome.ttft_ms / 1000)
        self.cache.labels(*labels, outcome.cache).inc()
        if outcome.cache != "hit":
            self._computed(labels, outcome)

    def _computed(self, labels: tuple[str, str, str, str], outcome: Outcome) -> None:
        self.tokens.labels(*labels, "prompt").inc(outcome.prompt_tokens)
        self.tokens.labels(*labels, "completion").inc(outcome.completion_tokens)
        if outcome.tokens_estimated:
            self.estimated.labels(*labels).inc()
        if outcome.ttft_ms is not None and outcome.completion_tokens > 1:
            pace_ms = (outcome.total_ms - outcome.ttft_ms) / (outcome.completion_tokens - 1)
            self.inter_token.labels(*labels).observe(pace_ms / 1000)

    def queue(self, in_flight: Mapping[str, int], failing: int, waiting: int) -> None:
        """Set the gauges of current work.

        `in_flight` counts the requests by replica, of which idle ones are left out, `failing` the replicas with an open
        breaker, `waiting` the requests that wait for a cold version.
        """
        self.in_flight.clear()
        for url, count in in_flight.items():
            if count:
                self.in_flight.labels(url).set(count)
        self.open.set(failing)
        self.waiting.set(waiting)

    def refused(self, project: str, status: int) -> None:
        """Count a request that was refused before it had a version; `project` is empty if nobody known sent it."""
        self.requests.labels(project, "", "", "none", str(status)).inc()


class OfProject(Collector):
    """The part of the metrics that a project may read: its own samples, and those that name no project or replica."""

    def __init__(self, metrics: Metrics, project: str) -> None:
        self.registry, self.project = metrics.registry, project

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics with only the samples that the project may see."""
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if self.may_see(sample.labels)]
            if metric.samples:
                yield metric

    def may_see(self, labels: Mapping[str, str]) -> bool:
        """Return True for a sample of the project, or one that has no label but a bucket's bound."""
        return labels["project"] == self.project if "project" in labels else labels.keys() <= {"le"}
