"""A fleet of six embedded engines that four projects share, its 32 clients, and what operators do to it meanwhile."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from registry.models import Adapter, AdapterVersion, Alias, Cluster, Replica
from registry.serving.desired_versions import desired_state
from serving_client import EngineClient
from tests.builders.people import member
from tests.crowd import CUT
from tests.soak.engine_process import EngineProcess
from tests.soak.hundreds import COUNT, PROMPT, Expected
from tests.waiting import wait_until

ENGINES, SLOTS = 6, 8
PROJECTS, ALIASES = ("eu", "near", "far", "slow"), 15
# Of each project's aliases, those that are there from the start: all of them fit, also on one replica less.
AT_FIRST = 8
# Slots of a replica that a grant gives; the owner has what is left.
SHARE = 2
# What the last project may send; its clients would send more.
REQUESTS_PER_S = 1.0
CLIENTS, STREAMS = 32, 4
BREATH_S = 1.0
# The router learns that a connection is closed a moment after the process died.
NOTICED_S = 0.25


@dataclass(frozen=True)
class Exchange:
    """A question to an alias, and how it ended; times of time.monotonic()."""

    project: str
    alias: str
    began: float
    ended: float
    status: int
    words: str = ""
    is_right: bool = True


class Crowd:
    """32 clients, eight of each project, who ask its aliases by Zipf's law; each answer is held to PEFT's."""

    def __init__(self, router: str, tokens: dict[str, str]) -> None:
        self._router, self._tokens = router, tokens
        self._stopped = threading.Event()
        self.expected: dict[str, dict[str, tuple[str, Expected]]] = {project: {} for project in PROJECTS}
        self.exchanges: list[Exchange] = []

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._go_on, args=(PROJECTS[number % len(PROJECTS)], number))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def once(self) -> None:
        """Ask every alias for one answer, one after another; clients of the limited project wait as they are told."""
        for project in PROJECTS:
            with self._client(project) as client:
                for alias in self.expected[project]:
                    while (exchange := self._ask(client, project, alias, is_stream=False)).status == 429:
                        time.sleep(1 / REQUESTS_PER_S)
                    self.exchanges.append(exchange)

    def _client(self, project: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._tokens[project]}"}
        return httpx.Client(base_url=self._router, timeout=120, headers=headers)

    def _go_on(self, project: str, number: int) -> None:
        dice = random.Random(number)
        with self._client(project) as client:
            while not self._stopped.wait(BREATH_S):
                aliases = list(self.expected[project])
                (alias,) = dice.choices(aliases, [1 / (place + 1) for place in range(len(aliases))])
                self.exchanges.append(self._ask(client, project, alias, is_stream=dice.randrange(STREAMS) == 0))

    def _ask(self, client: httpx.Client, project: str, alias: str, *, is_stream: bool) -> Exchange:
        body = {"model": alias, "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
        version, expected = self.expected[project][alias]
        began = time.monotonic()
        status, words, named = (listened if is_stream else answered)(client, body)
        is_right = status != 200 or (named, words) == (version, expected.text)
        return Exchange(project, alias, began, time.monotonic(), status, words, is_right)


def answered(client: httpx.Client, body: dict[str, Any]) -> tuple[int, str, str]:
    """Return status, text and version of an answer in one piece."""
    answer = client.post("/v1/completions", json=body)
    words = answer.json()["choices"][0]["text"] if answer.is_success else answer.text
    return answer.status_code, words, answer.headers.get("x-adapter-version", "")


def listened(client: httpx.Client, body: dict[str, Any]) -> tuple[int, str, str]:
    """Return status, text and version of a stream; status CUT if it broke off."""
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        version = answer.headers.get("x-adapter-version", "")
        try:
            if not answer.is_success:
                return answer.status_code, answer.read().decode(), version
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
        except httpx.TransportError:
            return CUT, "", version
    parts = [httpx.Response(200, text=line).json()["choices"] for line in lines]
    return 200, "".join(part[0]["text"] for part in parts if part), version


@dataclass
class Fleet:
    """The cluster with its engines, and what operators do to them, one thing after another."""

    cluster: Cluster
    by: User
    engines: list[EngineProcess]
    replicas: dict[EngineProcess, int] = field(default_factory=dict)
    kills: list[tuple[float, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    least: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PROJECTS, 1.0))

    def add(self, engine: EngineProcess) -> None:
        """Add a running engine."""
        engine.ready()
        self.replicas[engine] = self.cluster.add_replica(url=engine.url, by=self.by.as_actor()).pk
        self.done["added"] += 1

    def of(self, engine: EngineProcess) -> Replica:
        return Replica.objects.select_related("cluster__project").get(pk=self.replicas[engine])

    def cycle(self) -> Iterator[None]:
        """Do everything that operators and accidents do, each to an engine of its own, and begin anew."""
        for turn in itertools.count():
            killed, renamed, drained, replaced = (self.engines[(turn + place) % ENGINES] for place in range(4))
            self.kill(killed)
            yield
            self.rename(renamed)
            yield
            self.of(drained).drain(reason="maintenance", by=self.by.as_actor(), confirm=True)
            self.done["drained"] += 1
            yield
            self.of(drained).resume(reason="over", by=self.by.as_actor())
            yield
            self.remove(replaced)
            yield
            self.add(replaced)
            killed.ready()
            yield

    def kill(self, engine: EngineProcess) -> None:
        """Kill the process; it starts again at once, and empty."""
        before = time.monotonic()
        engine.kill()
        self.kills.append((before, time.monotonic() + NOTICED_S))
        engine.start()
        self.done["killed"] += 1

    def rename(self, engine: EngineProcess) -> None:
        """Give the replica the other name of its host."""
        replica = self.of(engine)
        names = ("127.0.0.1", "localhost")
        old, new = names if names[0] in replica.url else reversed(names)
        replica.change_address(replica.url.replace(old, new), reason="renamed", by=self.by.as_actor())
        self.done["renamed"] += 1

    def remove(self, engine: EngineProcess) -> None:
        """Drain the replica, wait until it holds nothing of ours, delete it, and start its process anew."""
        self.of(engine).drain(reason="replaced", by=self.by.as_actor(), confirm=True)
        wait_until(lambda: not held_by(engine), 60, "the drained replica to unload")
        self.of(engine).remove(reason="replaced", by=self.by.as_actor())
        engine.end()
        engine.start()
        self.done["removed"] += 1

    def check_shares(self) -> None:
        """Note for each project the part of its share that is wanted for it, as far as it has so many versions."""
        # With its replicas as they are now, as the control loop changes them.
        cluster = Cluster.objects.select_related("project").prefetch_related("replicas").get(pk=self.cluster.pk)
        usable = sum(replica.is_usable for replica in cluster.replicas.all())
        wanted, copies = desired_state(cluster), Counter[str]()
        for name, version in wanted.versions.items():
            copies[version.project.slug] += min(wanted.copies[name] or usable, usable)
        for project in PROJECTS:
            has = Alias.objects.filter(project__slug=project, cluster=cluster).count()
            if least := min(SHARE * usable, has):
                self.least[project] = min(self.least[project], copies[project] / least)


def held_by(engine: EngineProcess) -> set[str]:
    """Return the adapters that the engine says it holds."""
    with EngineClient(engine.url, timeout_s=30) as client:
        return {model.name for model in client.models() if model.parent is not None}


def tenants(cluster: Cluster, alice: User) -> dict[str, User]:
    """Make the projects that share the cluster, each with its administrator; the last one's requests are limited."""
    people = {cluster.project.slug: alice}
    for slug in PROJECTS[1:]:
        people[slug] = member(f"lead-{slug}", Project.objects.create(slug=slug, name=slug), Membership.Role.ADMIN)
        limits = {"requests_per_s": REQUESTS_PER_S} if slug == PROJECTS[-1] else {}
        cluster.grant(slug, slots=SHARE, by=alice.as_actor(), **limits)
    return people


def tokens(people: dict[str, User]) -> dict[str, str]:
    """Return a token with scope infer of each project."""
    projects = Project.objects.in_bulk(people, field_name="slug")
    return {slug: ApiToken.issue(name="app", project=projects[slug], scopes=["infer"])[1] for slug in people}


def make_aliases(
    cluster: Cluster, people: dict[str, User], numbered: list[tuple[int, Path]]
) -> dict[str, dict[str, tuple[str, int]]]:
    """Publish the folders behind aliases of the projects in turn, the first of each protected.

    Return for each project its aliases, each with the served name and the number of its folder.
    """
    made: dict[str, dict[str, tuple[str, int]]] = {slug: {} for slug in PROJECTS}
    for number, folder in numbered:
        slug = PROJECTS[number % len(PROJECTS)]
        by, project = people[slug].as_actor(), Project.objects.get(slug=slug)
        name = f"alias-{number // len(PROJECTS)}"
        adapter = Adapter.create(project=project, slug=name, base_model=cluster.base_model, by=by)
        version = AdapterVersion.publish(adapter, folder, method="upload", by=by)
        policy: dict[str, Any] = {"replicas": "auto"} | ({"quorum": 1} if number < len(PROJECTS) else {})
        Alias.create(project=project, name=name, cluster=cluster, version=version, policy=policy, by=by)
        made[slug][name] = (version.served_name, number)
    return made


def figures_of(exchanges: list[Exchange], fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Return what the soak prints."""
    times = [1000 * (each.ended - each.began) for each in exchanges if each.status == 200]
    quantiles = statistics.quantiles(times, n=100)
    return {
        "seconds": round(seconds),
        "answers": len(times),
        "over_the_share": sum(each.status == 429 for each in exchanges),
        "failed_in_flight": sum(each.status not in (200, 429) for each in exchanges),
        **{name: fleet.done[name] for name in ("killed", "drained", "renamed", "removed", "added")},
        "p50_ms": round(quantiles[49]),
        "p95_ms": round(quantiles[94]),
        "p99_ms": round(quantiles[98]),
    }
