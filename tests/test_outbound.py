"""The guarded client against addresses that lead inside."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from adapterhub import outbound


@pytest.mark.threat("G1")
@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "127.0.0.1",
        "10.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "2002:7f00:1::",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "fd00::1",
        "64:ff9b::7f00:1",
        "::127.0.0.1",
        "64:ff9b:1::a00:1",
        "2001:0:a00:1::",
    ],
)
def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 443))])
    with pytest.raises(outbound.Forbidden, match="not a public address"):
        outbound.pinned("https://hook.example/x", ["hook.example"])


@pytest.mark.threat("G1")
@pytest.mark.parametrize(
    "url",
    [
        "http://hook.example/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "file:///etc/passwd",
        "https://hook.example@evil.example/",
        "https://user@hook.example/",
        "https://evil.example/",
        "https:///x",
    ],
)
def test_only_listed_hosts_over_https(url: str) -> None:
    with pytest.raises(outbound.Forbidden):
        outbound.pinned(url, ["hook.example"])


@pytest.mark.threat("G1")
def test_one_hidden_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(0, 0, 0, "", (address, 443)) for address in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(outbound.Forbidden, match=r"10\.0\.0\.7"):
        outbound.pinned("https://hook.example/x", ["hook.example"])


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_a_public_address_is_asked(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 443))])
    assert address in outbound.pinned("https://Hook.Example./x", ["hook.example"])[0]


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(outbound.Forbidden, match="port"):
        outbound.pinned("https://hook.example:99999/", ["hook.example"])


@pytest.mark.threat("G2")
def test_a_name_is_looked_up_once_and_the_connection_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time is not asked a second time; a redirect is not followed."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (next(answers), 443))])
    requests: list[httpx.Request] = []

    def far_side(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(302, headers={"Location": "http://169.254.169.254/"})

    transport = httpx.MockTransport(far_side)
    assert outbound.post("https://hook.example/in?a=1", b"{}", allowed=["hook.example"], transport=transport) == 302
    assert [str(request.url) for request in requests] == ["https://93.184.216.34/in?a=1"]
    assert (requests[0].headers["Host"], requests[0].extensions["sni_hostname"]) == ("hook.example", "hook.example")


@pytest.fixture
def trickle() -> Iterator[int]:
    """The port of a server that goes on sending a byte at a time, and never ends its first record of TLS."""
    ended = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")
            while not ended.wait(0.05):
                connection.sendall(b"\x02")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        ended.set()
        thread.join()


@pytest.mark.threat("G8")
def test_a_receiver_that_trickles_is_cut_off(trickle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the worker that all projects' webhooks wait for."""
    monkeypatch.setattr(outbound, "resolve", lambda *_, **__: "127.0.0.1")
    monkeypatch.setattr(outbound, "LONGEST_S", 0.5)
    began = time.monotonic()
    with pytest.raises(httpx.HTTPError):
        outbound.post(f"https://hook.example:{trickle}/", b"{}", allowed=["hook.example"])
    assert time.monotonic() - began < 5
