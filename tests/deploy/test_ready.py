"""A vLLM pod is ready when it holds what the control plane wants there, and stays so while that is away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from registry.models import Alias, Replica
from tests.deploy.chart import CHART


class Engine(BaseHTTPRequestHandler):
    """Answers vLLM's /health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def engine() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_ready_is_who_holds_what_is_wanted(site: str, ci: str, alias: Alias, engine: int, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(ci + "\n")
    environ = {
        **os.environ,
        "CONTROL_PLANE": site,
        "CLUSTER": alias.cluster.slug,
        "POD_IP": "127.0.0.1",
        "PORT": str(engine),
        "TOKEN_FILE": str(tmp_path / "token"),
        "READY_MARK": str(tmp_path / "mark"),
    }

    def probe(**variables: str) -> tuple[int, str]:
        command = [sys.executable, "-I", str(CHART / "files/ready.py")]
        env = {**environ, **variables}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    away = {"CONTROL_PLANE": "http://127.0.0.1:9"}
    assert probe() == (1, "Not known yet.")
    name = alias.version.served_name
    replica = Replica.objects.create(cluster=alias.cluster, url=f"http://127.0.0.1:{engine}")
    replica.saw({}, "0.32.0")
    assert probe() == (1, f"Not loaded yet: {name}.")
    assert probe(**away)[0] == 1
    Replica.objects.filter(pk=replica.pk).update(loaded={name: "/srv/served/1"})
    assert probe() == (0, "")
    assert probe(**away)[0] == 0, "routers serve on, so does the pod"
    assert probe(PORT="9")[0] == 1, "its own engine is gone"
