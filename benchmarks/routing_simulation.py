"""Why the least loaded replica is a poor choice for prompts, and what weighing unread prompts changes. A simulation.

    python benchmarks/routing_simulation.py --out benchmarks/results/routing_simulation.json

Simulated servers batch continuously as vLLM does: a step takes STEP_S, the same for each row a little, and its prompt
tokens, of which a step reads up to BUDGET; a prefix cache holds the last prompts. 64 clients send 64 prompts of 700
tokens, even and by Zipf's law, and read 32 tokens, as in `routing_policies.py`. Policies: `round_robin`;
`in_flight`, the fewest requests in flight; `ours`, the router's own choice, whose load weighs requests whose first
token has not come; each before two equal servers, and before two of which one is half as fast.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import Row, arguments, publish
from serving_client.router.upstream.replica_choice import least_loaded
from serving_client.router.upstream.replica_load import ReplicaLoads

STEP_S, ROW_S, TOKEN_S, BUDGET = 0.018, 0.00005, 1 / 25_000, 2048
CLIENTS, PROMPTS, REQUESTS, TOKENS, PROMPT, QUESTION, CACHED = 64, 64, 1280, 32, 700, 20, 30_000
POLICIES = ("round_robin", "in_flight", "ours")
RUNS = 4


@dataclass
class Request:
    prompt: int
    sent: float
    unread: int = -1
    tokens: int = 0


@dataclass
class Server:
    """One server: requests that wait for their first token, and those that decode."""

    slowness: float
    waiting: list[Request] = field(default_factory=list)
    decoding: list[Request] = field(default_factory=list)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    is_busy: bool = False

    def read(self) -> tuple[list[Request], float]:
        """Read prompts within a step's budget; return those that are read, and how long the step takes."""
        left, read = BUDGET - len(self.decoding), []
        for request in list(self.waiting):
            if request.unread < 0:
                request.unread = QUESTION if request.prompt in self.cache else PROMPT + QUESTION
            taken = min(left, request.unread)
            request.unread, left = request.unread - taken, left - taken
            if not request.unread:
                self.keep(request.prompt)
                self.waiting.remove(request)
                read.append(request)
            if not left:
                break
        tokens = BUDGET - len(self.decoding) - left
        return read, self.slowness * (STEP_S + ROW_S * len(self.decoding) + TOKEN_S * tokens)

    def keep(self, prompt: int) -> None:
        self.cache[prompt] = None
        self.cache.move_to_end(prompt)
        while len(self.cache) * PROMPT > CACHED:
            self.cache.popitem(last=False)


class Simulation:
    """A run of one policy, until all requests are answered; `first_s` are the times to the first tokens."""

    def __init__(self, policy: str, slowness: tuple[float, ...], *, is_skewed: bool, seed: int) -> None:
        self.policy, self.dice = policy, random.Random(seed)
        random.seed(seed)  # of the router's choice among equals
        self.servers = {f"s{place}": Server(each) for place, each in enumerate(slowness)}
        self.loads, self.turn, self.now, self.number = ReplicaLoads(), 0, 0.0, 0
        weights = [1 / (place + 1) if is_skewed else 1 for place in range(PROMPTS)]
        self.prompts = self.dice.choices(range(PROMPTS), weights, k=REQUESTS)
        self.first_s: list[float] = []
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        for _ in range(CLIENTS):
            self.after(self.dice.uniform(0, 0.005), self.send)
        while self.events:
            self.now, _, event, values = heapq.heappop(self.events)
            event(*values)

    def after(self, seconds: float, event: Callable[..., None], *values: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, event, values))

    def chosen(self) -> str:
        names = list(self.servers)
        if self.policy == "round_robin":
            self.turn += 1
            return names[self.turn % len(names)]
        loads = self.loads
        if self.policy == "in_flight":
            loads = ReplicaLoads()
            loads.in_flight = self.loads.in_flight
        return least_loaded(names, loads, lambda _: False)[0]

    def send(self) -> None:
        if not self.prompts:
            return
        name = self.chosen()
        self.loads.in_flight[name] += 1
        self.loads.reading[name] += 1
        self.servers[name].waiting.append(Request(self.prompts.pop(), self.now))
        if not self.servers[name].is_busy:
            self.step(name)

    def step(self, name: str) -> None:
        server = self.servers[name]
        server.is_busy = bool(server.waiting or server.decoding)
        if server.is_busy:
            read, seconds = server.read()
            self.after(seconds, self.stepped, name, read)

    def stepped(self, name: str, read: list[Request]) -> None:
        server = self.servers[name]
        self.first_s += [self.now - request.sent for request in read]
        self.loads.reading[name] -= len(read)
        server.decoding += read
        for request in server.decoding:
            request.tokens += 1
        ended = [request for request in server.decoding if request.tokens >= TOKENS]
        server.decoding = [request for request in server.decoding if request.tokens < TOKENS]
        self.loads.in_flight[name] -= len(ended)
        for _ in ended:
            self.after(self.dice.uniform(0.001, 0.003), self.send)
        self.step(name)


def figures(policy: str, slowness: tuple[float, ...], *, is_skewed: bool) -> dict[str, float]:
    """Means of a few runs: milliseconds to the first token, requests a second."""
    runs = [Simulation(policy, slowness, is_skewed=is_skewed, seed=seed) for seed in range(RUNS)]
    cuts = [quantiles(run.first_s, n=100) for run in runs]
    p50, p95 = (1000 * mean(each[place] for each in cuts) for place in (49, 94))
    return {"first p50, ms": p50, "first p95, ms": p95, "requests/s": mean(REQUESTS / run.now for run in runs)}


def main() -> None:
    options = arguments(__doc__ or "")
    rows = []
    for servers, slowness in (("two servers", (1.0, 1.0)), ("one half as fast", (2.0, 1.0))):
        for load in ("even", "Zipf"):
            taken = {policy: figures(policy, slowness, is_skewed=load == "Zipf") for policy in POLICIES}
            for peer in POLICIES[:-1]:
                for what, ours in taken["ours"].items():
                    theirs = taken[peer][what]
                    ratio = ours / theirs if what == "requests/s" else theirs / ours
                    rows.append(Row(f"{what}, {servers}, {load}, ours against {peer}", ours, theirs, ratio))
    publish("routing_simulation", rows, options.out)


if __name__ == "__main__":
    main()
