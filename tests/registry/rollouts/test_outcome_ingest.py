"""Routers' reports become rows: which version answered a request."""

from __future__ import annotations

import json
import time

import pytest

from registry.models import Alias, Response
from registry.rollouts.outcome_ingest import collect
from registry.serving.valkey import valkey
from serving_client.protocol import OUTCOMES


def report(response_id: str, alias: Alias, **changes: object) -> dict[str, str]:
    fields = {
        "response_id": response_id,
        "at": time.time(),
        "project": alias.project.slug,
        "alias": alias.name,
        "version": alias.version.served_name,
        "arm": "none",
        "sticky": True,
        "unit": None,
        "status": 200,
        "ttft_ms": 3.5,
        "total_ms": 20.0,
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "cache": "bypass",
    }
    return {"o": json.dumps({**fields, **changes})}


def test_a_response_names_its_version(fresh_database: str, alias: Alias) -> None:
    with valkey() as client:
        client.xadd(OUTCOMES, report("r1", alias))
        client.xadd(OUTCOMES, report("r1", alias))
        client.xadd(OUTCOMES, report("r2", alias, version="gone.v9-000000000000"))
    assert collect() == 3
    assert collect() == 0
    response = Response.objects.get()
    assert (response.pk, response.version, response.completion_tokens) == ("r1", alias.version, 16)


def test_more_reports_than_a_batch(fresh_database: str, alias: Alias) -> None:
    with valkey() as client:
        for first in range(0, 1234, 50):
            together = [json.loads(report(f"r{number}", alias)["o"]) for number in range(first, min(first + 50, 1234))]
            client.xadd(OUTCOMES, {"o": json.dumps(together)})
    assert collect() == 1234
    assert Response.objects.count() == 1234


@pytest.mark.threat("D37")
def test_a_report_that_no_column_holds_keeps_back_no_other(
    fresh_database: str, alias: Alias, caplog: pytest.LogCaptureFixture
) -> None:
    """The attack: an engine of one project counts 10 billion tokens, and no answer of any project is counted again."""
    reports = [report("r1", alias), report("r2", alias, prompt_tokens=10**10), {"o": "[{}"}, report("r3", alias)]
    with valkey() as client:
        for each in reports:
            client.xadd(OUTCOMES, each)
    collect()
    assert collect() == 0
    assert sorted(Response.objects.values_list("pk", flat=True)) == ["r1", "r3"]
    assert "The report of r2 cannot be stored" in caplog.text
    assert "cannot be read" in caplog.text
