"""Tiny stand-ins for the processes, and a supervisor of them that runs as a program of its own."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from adapterhub.embedded.options import Options
from adapterhub.embedded.probes import HttpProbe, LogProbe
from adapterhub.embedded.process import ProcessSpec
from adapterhub.embedded.process_list import Plan, Step

SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
# Like Celery's prefork pool: a child of the child, in the same process group.
WORKER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
print("celery@fake ready.", flush=True)
time.sleep(600)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def server(name: str, port: int) -> ProcessSpec:
    argv = [sys.executable, "-c", SERVER, str(port)]
    return ProcessSpec(name, argv, dict(os.environ), HttpProbe("127.0.0.1", port, "/healthz"))


def worker(name: str) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", WORKER], dict(os.environ), LogProbe(" ready."))


def program(name: str, code: str) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", code], dict(os.environ), LogProbe("never said"))


def step(name: str, code: str) -> Step:
    return Step(name, [sys.executable, "-c", code], f"The step {name} failed")


def options(home: Path) -> Options:
    return Options(home=home, engines=0)


def plan(port: int) -> Plan:
    ports = [("ADAPTERHUB_PORT", port)]
    return Plan([step("migrate", "print('nothing to do')")], [server("web", port), worker("worker")], ports)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie, which only waits to be reaped, does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
