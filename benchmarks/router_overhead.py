"""What a router adds to a direct call, in milliseconds, and how many requests a second it can take.

All routers stand before one engine that costs nothing, each alone on one core; engine and load share the other. The
sides take turns within each round, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import quantiles

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import Row, arguments, publish
from benchmarks.router_sides import REST_CORE, sides
from tests.fakes.routing import INFER, STABLE

Samples = dict[tuple[str, int, bool], list[float]]
ADDED_GOALS_MS = {50: 0.8, 99: 4.0}


class Connection(asyncio.Protocol):
    """One request at a time; the first byte and the end of its answer are noted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, is_stream: bool) -> asyncio.Future[float]:
        """The time.perf_counter() of its first byte, once all of it is there."""
        self.buffer, self.first, self.is_stream = b"", 0.0, is_stream
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.first = self.first or time.perf_counter()
        self.buffer += data
        ending = b"0\r\n\r\n" if self.is_stream else b"}}"
        if self.buffer.endswith(ending) and not self.done.done():
            status = self.buffer[9:12]
            if status != b"200":
                self.done.set_exception(RuntimeError(self.buffer.decode()))
            else:
                self.done.set_result(self.first)

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "done") and not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed"))


def request_for(is_stream: bool) -> bytes:
    stream = b',"stream":true' if is_stream else b""
    body = b'{"model":"%b","prompt":"%b","max_tokens":16%b}' % (STABLE.encode(), b"word " * 40, stream)
    head = f"Host: localhost\r\nAuthorization: {INFER['Authorization']}\r\nContent-Type: application/json\r\n"
    return b"POST /v1/completions HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body)


async def paced(port: int, rate: int, seconds: float, is_stream: bool) -> list[float]:
    """Milliseconds to the first byte of requests sent at their time, whether or not earlier ones were answered."""
    request, free, samples = request_for(is_stream), [], []
    loop = asyncio.get_running_loop()
    for _ in range(min(32, rate)):
        free.append((await loop.create_connection(Connection, "127.0.0.1", port))[1])
    opened = list(free)

    async def one() -> None:
        began = time.perf_counter()
        connection = free.pop() if free else (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        samples.append((await connection.send(request, is_stream) - began) * 1000)
        free.append(connection)

    await asyncio.gather(*(one() for connection in opened))
    samples.clear()
    start, tasks = time.perf_counter(), []
    for number in range(max(1, int(rate * seconds))):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.transport.close()
    return samples


def measure(ports: dict[str, int], short: bool) -> Samples:
    samples: Samples = defaultdict(list)
    plan = [(100, 0.5)] if short else [(1, 4.0), (100, 2.0), (500, 2.0)]
    for turn in range(1 if short else 5):
        names = list(ports)[turn % len(ports) :] + list(ports)[: turn % len(ports)]
        for rate, seconds in plan:
            for is_stream in (False, True):
                for name in names:
                    samples[name, rate, is_stream] += uvloop.run(paced(ports[name], rate, seconds, is_stream))
    return samples


def percentile(samples: list[float], percent: int) -> float:
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


def added(samples: Samples) -> list[Row]:
    """What each side adds to a direct call: ours beside each peer's; the ratio has the goal over ours."""
    rows = []
    peers = sorted({name for name, _, _ in samples} - {"direct", "ours"}) or ["direct"]
    for rate, is_stream in sorted({(rate, is_stream) for _, rate, is_stream in samples}):
        for percent in (50, 99):
            base = percentile(samples["direct", rate, is_stream], percent)
            own_ms = percentile(samples["ours", rate, is_stream], percent) - base
            kind = "first byte of a stream" if is_stream else "whole answer"
            for peer in peers:
                peer_ms = percentile(samples[peer, rate, is_stream], percent) - (0 if peer == "direct" else base)
                label = f"added ms, p{percent}, {rate} rps, {kind}, {peer}"
                goal = ADDED_GOALS_MS[percent] if rate == 500 else None
                rows.append(
                    Row(
                        label, own_ms, peer_ms, (goal or peer_ms) / own_ms if own_ms > 0 else 0.0, 1.0 if goal else None
                    )
                )
    return rows


def highest(ports: dict[str, int], seconds: int) -> list[Row]:
    """Requests a second with 64 connections that never rest, by wrk; nothing where it is not installed."""
    if not (wrk := shutil.which("wrk")):
        return []
    rates: dict[str, float] = defaultdict(float)
    for _ in range(3):
        for name, port in ports.items():
            rates[name] = max(rates[name], wrk_rate(wrk, port, seconds))
    goals = {"vllm-router round_robin": 0.2, "vllm-router cache_aware": 0.4}
    return [
        Row(f"requests/s at most, {name}", rates["ours"], rate, rates["ours"] / rate, goals.get(name))
        for name, rate in rates.items()
        if name != "ours"
    ]


def wrk_rate(wrk: str, port: int, seconds: int) -> float:
    _, _, body = request_for(is_stream=False).partition(b"\r\n\r\n")
    script = f"wrk.method='POST' wrk.body=[[{body.decode()}]] wrk.headers['Content-Type']='application/json' "
    script += f"wrk.headers['Authorization']='{INFER['Authorization']}'"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = [wrk, "-t1", "-c64", f"-d{seconds}s", "-s", file.name, f"http://127.0.0.1:{port}/v1/completions"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    if "Non-2xx" in output:
        raise RuntimeError(output)
    rate_line = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    if rate_line is None:
        raise RuntimeError(output)
    return float(rate_line[1])


def main() -> None:
    options = arguments(__doc__ or "")
    os.sched_setaffinity(0, {REST_CORE})
    with sides(peers=not options.short) as ports:
        rows = added(measure(ports, options.short))
        rows += [] if options.short else highest(ports, 4)
    publish("router_overhead", rows, options.out)


if __name__ == "__main__":
    main()
