"""The inlined nginx configuration, run by a real nginx before two small upstreams."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.builders.nginx import start_nginx
from tests.composition import SITE, inline
from tests.embedded.fakes import free_port
from tests.tools import program, requires
from tests.waiting import wait_until

pytestmark = requires("nginx", "openssl")
HOST = SITE["PUBLIC_HOST"]
REQUEST_CERTIFICATE = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 1 -subj /CN={host} "
REQUEST_CERTIFICATE += "-addext subjectAltName=DNS:{host} -keyout {folder}/tls_key -out {folder}/tls_certificate"


class Upstream(ThreadingHTTPServer):
    """Says who it is and what it was asked; the second half of an answer waits until the client has the first."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.name = name
        self.go_on = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        lines = [self.server.name, self.path, self.headers["Host"], self.headers["X-Forwarded-Proto"]]
        self.respond("\n".join(lines).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.server.go_on.wait(10)
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read answers."""


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    servers = {name: Upstream(name) for name in ("web", "router")}
    yield servers
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def ports(folder: Path, upstreams: dict[str, Upstream]) -> Iterator[dict[str, int]]:
    """The ports of the running proxy: http and https."""
    request = REQUEST_CERTIFICATE.format(host=HOST, folder=folder).split()
    subprocess.run([program("openssl"), *request], check=True, capture_output=True)
    port_of = {"http": free_port(), "https": free_port()}
    (folder / "default.conf").write_text(configuration(folder, port_of, upstreams))
    with start_nginx(folder) as process:
        wait_until(lambda: process.poll() is not None or (folder / "nginx.pid").exists(), what="nginx starts")
        assert process.poll() is None
        yield port_of
        process.terminate()


def configuration(folder: Path, ports: dict[str, int], upstreams: dict[str, Upstream]) -> str:
    exchanged = {
        "listen 80;": f"listen 127.0.0.1:{ports['http']};",
        "listen 443 ssl;": f"listen 127.0.0.1:{ports['https']} ssl;",
        "http://web:8000": f"http://127.0.0.1:{upstreams['web'].server_port}",
        "http://router:8080": f"http://127.0.0.1:{upstreams['router'].server_port}",
        "/run/secrets": str(folder),
    }
    text = inline("nginx")
    for remote, local in exchanged.items():
        assert remote in text
        text = text.replace(remote, local)
    return text


@pytest.fixture
def site(folder: Path, ports: dict[str, int]) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=str(folder / "tls_certificate"))
    with httpx.Client(base_url=f"https://127.0.0.1:{ports['https']}", headers={"Host": HOST}, verify=trusted) as client:
        yield client


def get(site: httpx.Client, path: str) -> httpx.Response:
    return site.get(path, extensions={"sni_hostname": HOST})


@pytest.mark.parametrize(
    ("path", "name"),
    [("/", "web"), ("/api/v1/adapters/?cursor=a%20b", "web"), ("/admin/", "web"), ("/v1/models", "router")],
)
def test_a_path_goes_to_its_process(site: httpx.Client, path: str, name: str) -> None:
    assert get(site, path).text.split("\n") == [name, path, HOST, "https"]


@pytest.mark.parametrize("path", ["/v1/", "/v1/load_lora_adapter", "/v1/models/x", "/v1/metrics"])
def test_of_the_router_only_its_calls_are_public(site: httpx.Client, path: str) -> None:
    assert get(site, path).status_code == 404


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_token_leaves_before_the_next_is_there(site: httpx.Client, upstreams: dict[str, Upstream], path: str) -> None:
    router = upstreams["router"]
    router.go_on.clear()
    with site.stream("POST", path, content=b"{}", extensions={"sni_hostname": HOST}) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        router.go_on.set()
        assert b"".join(pieces) == b"second"


def test_a_body_over_four_megabytes_stops_at_the_proxy(site: httpx.Client) -> None:
    answer = site.post("/v1/completions", content=b"x" * (4 * 2**20 + 1), extensions={"sni_hostname": HOST})
    assert answer.status_code == 413


def test_plain_http_is_sent_to_https(ports: dict[str, int]) -> None:
    answer = httpx.get(f"http://127.0.0.1:{ports['http']}/login/?next=/", headers={"Host": HOST})
    assert (answer.status_code, answer.headers["location"]) == (301, f"https://{HOST}/login/?next=/")
