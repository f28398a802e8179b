"""The router answers callers that know its name: what a web page makes of a name of its own is turned away."""

from __future__ import annotations

import pytest

from serving_client.router.http.host_header import LOOPBACK, KnownHosts, name_in
from tests.fakes.routing import INFER
from tests.fakes.stage import Engine, Router


@pytest.mark.threat("H1")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_name_is_400_and_no_engine_hears_of_it(router: Router, engine: Engine, host: str) -> None:
    for path in ("/v1/completions", "/v1/models"):
        answer = router.http.request(
            "POST" if "comp" in path else "GET",
            path,
            headers=INFER | {"Host": host},
            json={"model": "compliance", "prompt": "a"},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_host")
    assert engine.fake.received == []


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "[::1]:8080", "[::1]"])
def test_its_own_names_are_answered(router: Router, host: str) -> None:
    assert router.complete(INFER | {"Host": host}).status_code == 200


def test_probes_and_metrics_may_come_by_address(router: Router) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert router.http.get(path, headers={"Host": "10.1.2.3:8080"}).status_code == 200
    assert {name_in(f"{host}:8080") for host in LOOPBACK} == KnownHosts(None, LOOPBACK).hosts  # type: ignore[arg-type]
