"""Access to a router's metrics, which name the versions of all projects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serving_client.engine_keys import kept_secret
from tests.fakes.routing import FOREIGN, FOREIGNER, INFER, STABLE, make_table, token, token_route
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
@pytest.mark.parametrize("operator", [None, "watch"])
def test_a_projects_token_reads_the_metrics_of_its_project_alone(
    start_router: StartRouter, engine: Engine, operator: str | None
) -> None:
    router = start_router(metrics_token=operator)
    table = make_table(engine.url)
    readers = {"readseu00000": token_route("eu", "infer", "read"), "readsus00000": token_route("us", "infer", "read")}
    router.publish(replace(table, tokens=dict(table.tokens) | readers))
    assert router.complete().status_code == 200
    assert router.complete(FOREIGNER, model="billing", stream=True).status_code == 200
    assert router.complete(FOREIGNER, model="nothing").status_code == 404
    router.reported()
    texts = {name: router.http.get("/metrics", headers=token(name)).text for name in readers}
    for text, own, other in ((texts["readseu00000"], "eu", "us"), (texts["readsus00000"], "us", "eu")):
        assert (f'project="{own}"' in text, f'project="{other}"' in text) == (True, False)
        assert "adapterhub_table_generation 1.0" in text
        assert not re.search(r'\breplica=|project=""', text)
    assert (STABLE in texts["readseu00000"], FOREIGN in texts["readseu00000"]) == (True, False)
    assert (STABLE in texts["readsus00000"], FOREIGN in texts["readsus00000"]) == (False, True)
    assert (
        'adapterhub_requests_total{alias="",arm="none",project="us",status="404",version=""} 1.0'
        in (texts["readsus00000"])
    )
    refused = router.http.get("/metrics", headers=INFER)
    assert (refused.status_code, STABLE in refused.text) == (403, False)
    for name in ("expired00000", "unknown00000"):
        strange = router.http.get("/metrics", headers=token(name))
        assert strange.status_code == (401 if operator else 200)
        assert "project=" not in strange.text


@pytest.mark.threat("A4")
def test_a_missing_file_gets_a_token_that_stays(tmp_path: Path) -> None:
    file = tmp_path / "router" / "metrics-token"
    token = kept_secret(file)
    assert (len(token) >= 32, kept_secret(file), file.stat().st_mode & 0o777) == (True, token, 0o600)
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        kept_secret(file)
