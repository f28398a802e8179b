"""Regular expressions of users: none takes memory or time by its own size, at any door and in any process."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from registry.models import Adapter, AdapterVersion, Alias, Rollout
from serving_client.engine.adapters.adapter_config import read_lora_shape
from serving_client.engine.errors import AdapterUnusable
from serving_client.protocol import Checks
from serving_client.regex import BadPattern, compiled
from serving_client.router.reporting.response_checks import judged
from tests.builders.patterns import UNFOLDING
from tests.builders.rest import client, problem
from training.recipes.scoring import matches

TEXT = "a" * 100_000 + "!"


@pytest.mark.threat("D15")
@pytest.mark.parametrize("pattern", UNFOLDING)
@pytest.mark.parametrize("check", ["refusal", "format"])
def test_a_draft_with_a_pattern_that_unfolds_is_refused_at_once(
    ci: str, alias: Alias, candidate: AdapterVersion, pattern: str, check: str
) -> None:
    body = {
        "alias": alias.name,
        "candidate": candidate.served_name,
        "steps": [{"weight": 10}],
        "reason": "try",
        "draft": True,
        "checks": {check: pattern},
    }
    before, began = peak_kb(), time.process_time()
    answer = client(ci).post("/api/v1/rollouts/", body)
    assert (time.process_time() - began, peak_kb() - before) < (1, 20_000)
    assert problem(answer, 422, "bad_check")["errors"][0]["field"] == f"checks.{check}"
    assert not Rollout.objects.exists()


@pytest.mark.threat("D15")
@pytest.mark.parametrize("pattern", UNFOLDING)
def test_an_evaluation_with_such_a_pattern_is_refused_at_once(ci: str, version: AdapterVersion, pattern: str) -> None:
    body = {"project": "eu", "version": version.served_name, "prompts": ["x"], "pattern": pattern[:200]}
    before, began = peak_kb(), time.process_time()
    problem(client(ci).post("/api/v1/evaluations/", body), 422, "bad_pattern")
    assert (time.process_time() - began, peak_kb() - before) < (1, 20_000)


@pytest.mark.threat("D15")
@pytest.mark.parametrize("pattern", [r"\pL{1000}", r"\pL{200}", r"(?:\pN\pL){100}"])
def test_a_pattern_takes_at_most_a_megabyte(pattern: str) -> None:
    """A class of letters alone compiles to hundreds of steps; 256 compiled patterns are kept."""
    before, began = peak_kb(), time.monotonic()
    with pytest.raises(BadPattern, match="too large"):
        compiled(pattern)
    assert (time.monotonic() - began, peak_kb() - before) < (1, 8_000)


def nested(depth: int) -> dict[str, Any]:
    return {"items": nested(depth - 1)} if depth else {}


@pytest.mark.threat("D15")
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"pattern": UNFOLDING[0]}}},
        {"patternProperties": {UNFOLDING[0]: {}}},
        {"$defs": {"a": {"allOf": [{"$recursiveRef": "#"}]}}},
        {"unevaluatedProperties": {"unevaluatedProperties": {}}},
        {"enum": list(range(1000))},
        nested(200),
        5,
        [],
    ],
)
def test_a_schema_that_could_run_without_end_is_refused_unread(
    ci: str, alias: Alias, candidate: AdapterVersion, schema: Any
) -> None:
    body = {
        "alias": alias.name,
        "candidate": candidate.served_name,
        "steps": [{"weight": 10}],
        "reason": "try",
        "draft": True,
        "checks": {"schema": schema},
    }
    answer = client(ci).post("/api/v1/rollouts/", body)
    assert problem(answer, 422, "bad_check")["errors"][0]["field"] == "checks.schema"


@pytest.mark.threat("D15")
def test_no_text_makes_a_pattern_slow() -> None:
    began = time.process_time()
    assert judged(Checks(refusal=r"(a+)+$", format=r"(a|aa)+b"), TEXT)["refusal"] is False
    assert matches(TEXT, r"(a*)*b") == 0
    assert time.process_time() - began < 1


@pytest.mark.threat("D15")
@pytest.mark.parametrize("pattern", UNFOLDING)
def test_one_that_a_table_brings_says_nothing_and_takes_nothing(pattern: str) -> None:
    before, began = peak_kb(), time.process_time()
    assert judged(Checks(refusal=pattern), TEXT) == {"empty": False}
    assert (time.process_time() - began, peak_kb() - before) < (1, 20_000)


@pytest.mark.threat("D15")
@pytest.mark.parametrize("pattern", UNFOLDING)
def test_an_engine_refuses_an_adapter_with_such_a_key(pattern: str, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {pattern: 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterUnusable):
        read_lora_shape(tmp_path)


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.threat("D15")
@pytest.mark.parametrize(
    "expression",
    [
        f"name LIKE '{'%a' * 2400}'",
        f"name ILIKE '{'%_' * 2400}'",
        f"name LIKE '{'%' * 4800}b'",
        " AND ".join(["name LIKE '%a%a%a%a%a%a%b'"] * 120),
    ],
    ids=["letters", "any", "runs", "many"],
)
def test_a_filter_of_mlflows_search_takes_no_time(ci: str, version: AdapterVersion, expression: str) -> None:
    """The attack: Postgres was given a regular expression made of the wildcards, and web answered 500."""
    adapters = [
        Adapter(project=version.project, base_model=version.adapter.base_model, slug="a" * 40 + str(number))
        for number in range(300)
    ]
    Adapter.objects.bulk_create(adapters)
    began = time.monotonic()
    answer = client(ci).get("/api/2.0/mlflow/registered-models/search", {"filter": expression})
    assert (answer.status_code in (200, 400), time.monotonic() - began < 1) == (True, True), answer.content[:300]
