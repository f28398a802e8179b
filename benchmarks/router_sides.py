"""What router_overhead.py compares: an engine that costs nothing, and the routers before it, each on one core."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from tests.fakes.routing import make_table
from tests.fakes.stage import announce, running_valkey

CORES = sorted(os.sched_getaffinity(0))
ROUTER_CORE, REST_CORE = CORES[0], CORES[-1]
CHUNKS, CHUNK_PAUSE_S = 4, 0.005
ANSWER = (
    b'{"id":"cmpl-1","object":"text_completion","model":"x","choices":[{"index":0,"text":" two words",'
    b'"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"text":" two"}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
uwsgi_temp_path {folder}; scgi_temp_path {folder};
upstream engine {{ server 127.0.0.1:{engine}; keepalive 256; }}
server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; location / {{ proxy_pass http://engine;
proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}"""


class Engine(asyncio.Protocol):
    """Answers at once; a stream comes in CHUNKS pieces with CHUNK_PAUSE_S between them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + length_in(self.buffer[:end])
            if len(self.buffer) < size:
                return
            body, self.buffer = self.buffer[end:size], self.buffer[size:]
            self.answer(body)

    def answer(self, body: bytes) -> None:
        if b'"stream":true' not in body:
            self.transport.write(WHOLE)
            return
        loop = asyncio.get_running_loop()
        self.transport.write(HEAD + CHUNK)
        for number in range(1, CHUNKS):
            loop.call_later(number * CHUNK_PAUSE_S, self.transport.write, CHUNK)
        loop.call_later((CHUNKS - 1) * CHUNK_PAUSE_S, self.transport.write, b"0\r\n\r\n")


def length_in(head: bytes) -> int:
    """Content-Length; 0 without one."""
    _, separator, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if separator else 0


def serve_engine(port: int) -> None:
    os.sched_setaffinity(0, {REST_CORE})

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def sides(peers: bool) -> Iterator[dict[str, int]]:
    """Name -> port of what listens: `direct`, `ours`, and those of the peers that this machine has."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        engine = free_port()
        process = multiprocessing.Process(target=serve_engine, args=(engine,), daemon=True)
        process.start()
        stack.callback(process.kill)
        wait_for(engine)
        ports = {"direct": engine, "ours": stack.enter_context(ours(engine, folder))}
        for name, command in (commands(engine, folder) if peers else {}).items():
            ports[name] = stack.enter_context(pinned(command))
        yield ports


@contextmanager
def ours(engine: int, folder: Path) -> Iterator[int]:
    with running_valkey() as valkey:
        announce(valkey, make_table(f"http://127.0.0.1:{engine}"))
        module = [sys.executable, "-m", "serving_client.router", "--redis-url", valkey.url]
        with pinned(lambda port: [*module, "--snapshot", str(folder / "table"), "--port", str(port)]) as port:
            yield port


def commands(engine: int, folder: Path) -> dict[str, Callable[[int], list[str]]]:
    """Peers that are installed."""
    commands_of: dict[str, Callable[[int], list[str]]] = {}
    if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        commands_of["nginx"] = lambda port: [nginx, "-p", str(folder), "-c", str(nginx_file(folder, engine, port))]
    if router := shutil.which("vllm-router"):
        for policy in ("round_robin", "cache_aware"):
            commands_of[f"vllm-router {policy}"] = lambda port, policy=policy: [  # type: ignore[misc]
                router,
                "--worker-urls",
                f"http://127.0.0.1:{engine}",
                "--policy",
                policy,
                "--port",
                str(port),
                "--host",
                "127.0.0.1",
                "--log-level",
                "error",
                "--prometheus-port",
                str(free_port()),
            ]
    return commands_of


def nginx_file(folder: Path, engine: int, port: int) -> Path:
    path = folder / "nginx.conf"
    path.write_text(NGINX.format(folder=folder, engine=engine, port=port))
    return path


@contextmanager
def pinned(command: Callable[[int], list[str]]) -> Iterator[int]:
    """The process on its core; yields the port that it listens on."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603
        ["taskset", "-c", str(ROUTER_CORE), *command(port)],  # noqa: S607
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"Nothing listens on port {port}.")
