"""Access to a router's metrics, which name the versions of all projects."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_client.router.__main__ import kept_token
from tests.fakes.routing import STABLE, make_table
from tests.fakes.stage import Engine, Router

StartRouter = Callable[..., Router]


@pytest.mark.threat("A4")
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer other"}, {"Authorization": "watch"}])
def test_without_the_token_there_are_none(start_router: StartRouter, engine: Engine, header: dict[str, str]) -> None:
    router = start_router(metrics_token="watch")
    router.publish(make_table(engine.url))
    assert router.complete().status_code == 200
    refused = router.http.get("/metrics", headers=header)
    assert refused.status_code == 401
    assert STABLE not in refused.text


@pytest.mark.threat("A4")
def test_a_router_without_a_token_names_nobodys_things(start_router: StartRouter, engine: Engine) -> None:
    router = start_router()
    router.publish(make_table(engine.url))
    assert router.complete().status_code == 200
    metrics = router.http.get("/metrics").text
    assert "adapterhub_table_generation 1.0" in metrics
    assert not re.search(r"\b(alias|version|replica|project)=", metrics)


@pytest.mark.threat("A4")
def test_a_missing_file_gets_a_token_that_stays(tmp_path: Path) -> None:
    file = tmp_path / "router" / "metrics-token"
    token = kept_token(file)
    assert (len(token) >= 32, kept_token(file), file.stat().st_mode & 0o777) == (True, token, 0o600)
    file.write_text("")
    with pytest.raises(SystemExit, match="is empty"):
        kept_token(file)
